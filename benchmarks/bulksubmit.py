"""bulksubmit against a plain script that does the same; and how many jobs to keep inside Flux.

    python benchmarks/bulksubmit.py [--jobs N] [--runs N] [--instances N] [--max-active N ...] [--json FILE]

N jobspecs ``sleep 0`` (1025 by default) are made by ``flux submit --dry-run``, and then run in turns, each
time in a fresh Flux instance on this machine (one slows down with the finished jobs that it remembers): by
``benchmarks/plain_submit.py``, by ``bulksubmit`` in that instance alone, with so many instances inside it
(``--instances``, by default one a core), and in an instance of its own, which is started and ended in the
time that is measured. Timed is the whole command, from its start to its end. Exit status 1 if the median rate
with instances inside is below ``--least`` times the script's (default 1.2).
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
    """Write jobspecs, all alike, into a directory."""
    with flux_instance() as uri:
        command = ["flux", "submit", "--dry-run", "sleep", "0"]
        made = subprocess.run(
            command, env={**os.environ, "FLUX_URI": uri}, capture_output=True, text=True, check=True
        )
    for number in range(jobs):
        (directory / f"job-{number:05}.json").write_text(made.stdout)


def run(kind: str, directory: Path, jobs: int) -> float:
    """Run all jobs once, in a fresh instance; return jobs a second."""
    if kind == OWN:
        return timed(kind, directory, jobs, "")
    with flux_instance() as uri:
        return timed(kind, directory, jobs, uri)


def timed(kind: str, directory: Path, jobs: int, uri: str) -> float:
    """Run all jobs once, in an instance; return jobs a second of the whole command."""
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
    said = f" Ran {jobs} jobs in " if kind != PLAIN else " 0\n"
    if said not in done.stdout:
        raise RuntimeError(f"{kind} did not run {jobs} jobs; it printed at the end: {done.stdout[-200:]}")
    return jobs / seconds


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description="bulksubmit against a plain script that does the same.")
    parser.add_argument("--jobs", type=int, default=1025, help="jobs a run (default 1025)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--least", type=float, default=1.2, help="ratio to reach (default 1.2)")
    parser.add_argument(
        "--instances",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="instances inside (default: cores)",
    )
    parser.add_argument("--max-active", type=int, nargs="+", default=[], metavar="N", help="try these too")
    parser.add_argument("--json", metavar="FILE", help="write every rate there")
    options = parser.parse_args()
    if why := flux_missing():
        print(f"bulksubmit cannot be compared here: {why}", file=sys.stderr)
        return 2
    judged = f"{ATTACHED} --instances {options.instances}"
    kinds = [PLAIN, ATTACHED, judged, OWN]
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
    ratio = statistics.median(rates[judged]) / plain
    print(f"\n{judged} : {PLAIN} = {ratio:.2f}, must reach {options.least:g}")
    return 0 if ratio >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
