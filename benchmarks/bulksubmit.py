"""Compare bulksubmit with a plain script, and numbers of jobs to keep inside Flux with each other.

    python benchmarks/bulksubmit.py [--jobs N] [--runs N] [--instances N] [--max-active N ...] [--json FILE]

``flux submit --dry-run`` writes N jobspecs of ``sleep 0`` (default: 1025). Each run uses a fresh Flux
instance on this machine: an instance slows down with the number of its ended jobs. The runs alternate between
``benchmarks/plain_submit.py``; ``bulksubmit`` in that instance alone; ``bulksubmit`` with inner instances
(``--instances``, default: one for each core); and ``bulksubmit`` with an instance that it starts and ends
itself within the measured time. The time of the whole command is measured.

The exit status is 1 if the median rate with inner instances is below ``--least`` times the script's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flux_instance import flux_instance, flux_missing

HERE = Path(__file__).resolve().parent
LIMIT = 300.0
"""Seconds that one run may take."""

PLAIN = "plain script"
ATTACHED = "bulksubmit"
OWN = "bulksubmit, its own Flux"


def make_jobspecs(directory: Path, jobs: int) -> None:
    """Write equal jobspecs into a directory."""
    with flux_instance() as uri:
        command = ["flux", "submit", "--dry-run", "sleep", "0"]
        made = subprocess.run(
            command, env={**os.environ, "FLUX_URI": uri}, capture_output=True, text=True, check=True
        )
    for number in range(jobs):
        (directory / f"job-{number:05}.json").write_text(made.stdout)


def run(kind: str, directory: Path, jobs: int) -> float:
    """Run all jobs once, in a fresh instance; return the rate in jobs/s."""
    if kind == OWN:
        return timed(kind, directory, jobs, "")
    with flux_instance() as uri:
        return timed(kind, directory, jobs, uri)


def timed(kind: str, directory: Path, jobs: int, uri: str) -> float:
    """Run all jobs once, in an instance; return the rate of the whole command in jobs/s."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "FLUX_URI": uri, "PYTHONPATH": os.pathsep.join(paths)}
    if kind == PLAIN:
        command = [sys.executable, str(HERE / "plain_submit.py"), str(directory)]
    else:
        options = [] if kind == OWN else kind.split()[1:]
        command = [sys.executable, "-m", "parsl_flux_bulk", str(directory), *options]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{kind} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    success = f" Ran {jobs} jobs in " if kind != PLAIN else " 0\n"
    if success not in done.stdout:
        raise RuntimeError(f"{kind} did not run {jobs} jobs; the end of its output: {done.stdout[-200:]}")
    return jobs / seconds


def main() -> int:
    """Measure, print, compare with the target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1025, help="jobs of a run (default: 1025)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each command (default: 3)")
    parser.add_argument("--least", type=float, default=1.2, help="ratio to reach (default: 1.2)")
    parser.add_argument(
        "--instances",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="inner instances (default: cores)",
    )
    parser.add_argument(
        "--max-active", type=int, nargs="+", default=[], metavar="N", help="add runs with these limits"
    )
    parser.add_argument("--json", metavar="FILE", help="write every rate to FILE")
    options = parser.parse_args()
    if why := flux_missing():
        print(f"bulksubmit cannot be measured here: {why}", file=sys.stderr)
        return 2
    compared = f"{ATTACHED} --instances {options.instances}"
    kinds = [PLAIN, ATTACHED, compared, OWN]
    kinds += [f"{ATTACHED} --max-active {number}" for number in options.max_active]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="jobspecs-") as directory:
        make_jobspecs(Path(directory), options.jobs)
        for number in range(options.runs):
            for kind in kinds:
                rates[kind].append(run(kind, Path(directory), options.jobs))
                print(
                    f"  run {number + 1}, {kind}: {rates[kind][-1]:.1f} jobs/s", file=sys.stderr, flush=True
                )
    plain = statistics.median(rates[PLAIN])
    print(f"\n{options.jobs} jobs `sleep 0`, medians of {options.runs} runs\n")
    print("| | jobs/s | lowest … highest | ratio |")
    print("|---|---:|---|---:|")
    for kind, values in rates.items():
        median = statistics.median(values)
        print(f"| {kind} | {median:.1f} | {min(values):.1f} … {max(values):.1f} | {median / plain:.2f} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rates, indent=1) + "\n")
    ratio = statistics.median(rates[compared]) / plain
    print(f"\n{compared} : {PLAIN} = {ratio:.2f}, must reach {options.least:g}")
    return 0 if ratio >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
