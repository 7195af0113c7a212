"""Compare ways to run many short jobs: bulksubmit, a plain script, xargs and HyperQueue.

    python benchmarks/bulksubmit.py [--jobs N] [--runs N] [--kinds KIND ...] [--max-active N] [--json FILE]
    python benchmarks/bulksubmit.py --scale 10000 100000
    python benchmarks/bulksubmit.py --brokers 4

``flux submit --dry-run`` writes N jobspecs of ``sleep 0`` (default: 1025). The kinds alternate, and each run
uses a fresh Flux instance on this machine: an instance slows down with the number of its ended jobs. The time
of the whole command is measured; "own Flux" includes the start and the end of the instance. HyperQueue is
measured if the Python package ``hyperqueue`` is installed.

``--scale`` runs so many packed copies of ``sleep 0`` in a running instance, and prints rates and the largest
resident memory of the command, of the node job's server and of the broker. ``--brokers`` runs 2,000 packed
copies of ``sleep 0.1`` in an instance of so many brokers, and prints the share of each.

The exit status is 1 if a ratio misses its target.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from flux_instance import flux_instance, flux_missing

from parsl_flux_bulk.blocks.packed.node_job import IDS_OF_A_NODE

HERE = Path(__file__).resolve().parent
LIMIT = 300.0
"""Seconds that one run may take."""

PLAIN = "plain script"
ATTACHED = "bulksubmit"
PACKED = "bulksubmit --packed"
OWN = "bulksubmit, own Flux"
LOCAL = "bulksubmit --local"
XARGS = "xargs -P"
HYPERQUEUE = "HyperQueue"
KINDS = (PLAIN, ATTACHED, PACKED, OWN, LOCAL, XARGS, HYPERQUEUE)

SHARE = 0.1
"""Distance from an equal share that a broker's number of packed jobs may have."""

TARGETS = (
    (PACKED, PLAIN, 15.0),
    (PACKED, XARGS, 0.6),
    (OWN, PLAIN, 8.0),
    (PACKED, HYPERQUEUE, 1.5),
    (LOCAL, XARGS, 0.7),
)
"""A kind, the kind to compare with, and the least ratio of their median rates."""


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
    """Run all jobs once; return the rate in jobs/s of the whole command."""
    if kind in (OWN, LOCAL, XARGS, HYPERQUEUE):
        return timed(kind, directory, jobs, "")
    with flux_instance() as uri:
        return timed(kind, directory, jobs, uri)


def command_of(kind: str, directory: Path, jobs: int) -> list[str]:
    """Return the command to measure."""
    if kind == PLAIN:
        return [sys.executable, str(HERE / "plain_submit.py"), str(directory)]
    if kind == XARGS:
        cores = len(os.sched_getaffinity(0))
        return ["sh", "-c", f"yes 0 | head -n {jobs} | xargs -P{cores} -n1 sleep"]
    if kind == HYPERQUEUE:
        return [sys.executable, str(HERE / "hyperqueue_submit.py"), str(jobs)]
    options = [] if kind == OWN else kind.split()[1:]
    return [sys.executable, "-m", "parsl_flux_bulk", str(directory), *options]


def timed(kind: str, directory: Path, jobs: int, uri: str) -> float:
    """Run all jobs once, in an instance; return the rate of the whole command in jobs/s."""
    environment = environment_of(uri)
    command = command_of(kind, directory, jobs)
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{kind} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    success = {PLAIN: " 0\n", HYPERQUEUE: " 0\n", XARGS: ""}.get(kind, f" Ran {jobs} jobs in ")
    if success not in done.stdout:
        raise RuntimeError(f"{kind} did not run {jobs} jobs; the end of its output: {done.stdout[-200:]}")
    return jobs / seconds


def environment_of(uri: str) -> dict[str, str]:
    """Return the environment of a command: with this package, in an instance, and with byte code kept."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "FLUX_URI": uri, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has byte code
    return environment


def measure_scale(sizes: list[int]) -> int:
    """Run packed copies of a command by the number; print rates and memory."""
    print("| packed copies of `sleep 0` | jobs/s | command, MiB | server, MiB | broker, MiB |")
    print("|---:|---:|---:|---:|---:|")
    for jobs in sizes:
        with flux_instance() as uri:
            command = [sys.executable, "-m", "parsl_flux_bulk", "--packed", "--copies", str(jobs), "--"]
            began = time.perf_counter()
            run = subprocess.Popen(
                [*command, "sleep", "0"], env=environment_of(uri), stdout=subprocess.DEVNULL
            )
            asked = subprocess.run(
                ["flux", "getattr", "broker.pid"], env=environment_of(uri), capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            memory = watch_memory(run, int(asked.stdout))
            seconds = time.perf_counter() - began
        if run.returncode:
            raise RuntimeError(f"bulksubmit ended with {run.returncode}")
        shown = " | ".join(f"{kib / 1024:.0f}" for kib in memory)
        print(f"| {jobs} | {jobs / seconds:.0f} | {shown} |", flush=True)
    return 0


def measure_shares(brokers: int, jobs: int = 2000) -> int:
    """Run packed jobs on several brokers; print how many each runs, as a multiple of an equal share."""
    with flux_instance(0, f"-s{brokers}") as uri, tempfile.TemporaryDirectory(prefix="shares-") as directory:
        records = Path(directory) / "records"
        options = ["--packed", "--copies", str(jobs), "--json", str(records)]
        command = [sys.executable, "-m", "parsl_flux_bulk", *options, "--", "sleep", "0.1"]
        subprocess.run(command, env=environment_of(uri), stdout=subprocess.DEVNULL, check=True)
        ids = [int(json.loads(line)["id"]) for line in records.read_text().splitlines()]
    counts = Counter(job_id // IDS_OF_A_NODE for job_id in ids)
    shares = [count * brokers / jobs for _, count in sorted(counts.items())]
    print(
        f"{jobs} packed jobs on {brokers} brokers: {', '.join(f'{share:.3f}' for share in shares)} of a share"
    )
    return 0 if len(shares) == brokers and all(abs(share - 1) <= SHARE for share in shares) else 1


def watch_memory(run: subprocess.Popen[bytes], broker: int) -> tuple[int, int, int]:
    """Wait for a command; return the largest resident memory (KiB) of it, the server and the broker."""
    most = [0, 0, 0]
    server = 0
    while run.poll() is None:
        server = server or find_server(broker)
        for index, pid in enumerate((run.pid, server, broker)):
            most[index] = max(most[index], resident(pid))
        time.sleep(0.2)
    return most[0], most[1], most[2]


def find_server(broker: int) -> int:
    """Return the pid of the embedded server among the descendants of a broker; 0 if there is none yet."""
    found = subprocess.run(["pgrep", "-f", "instances.local.server"], capture_output=True, text=True)
    for pid in map(int, found.stdout.split()):
        parent = pid
        while parent > 1 and parent != broker:
            parent = parent_of(parent)
        if parent == broker:
            return pid
    return 0


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def resident(pid: int) -> int:
    """Return the resident memory of a process (KiB); 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except OSError:
        return 0


def main() -> int:
    """Measure, print, compare with the target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1025, help="jobs of a run (default: 1025)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each command (default: 3)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument(
        "--max-active", type=int, nargs="+", default=[], metavar="N", help="add runs with these limits"
    )
    parser.add_argument("--json", metavar="FILE", help="write every rate to FILE")
    parser.add_argument(
        "--scale",
        type=int,
        nargs="+",
        metavar="N",
        help="run packed copies instead, and watch memory",
    )
    parser.add_argument(
        "--brokers", type=int, metavar="N", help="show how N brokers share packed jobs instead"
    )
    options = parser.parse_args()
    if why := flux_missing():
        print(f"bulksubmit cannot be measured here: {why}", file=sys.stderr)
        return 2
    if options.scale:
        return measure_scale(options.scale)
    if options.brokers:
        return measure_shares(options.brokers)
    if HYPERQUEUE in options.kinds and importlib.util.find_spec("hyperqueue") is None:
        options.kinds.remove(HYPERQUEUE)
        print("without HyperQueue: pip install hyperqueue", file=sys.stderr)
    kinds = [*options.kinds, *(f"{ATTACHED} --max-active {number}" for number in options.max_active)]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="jobspecs-") as directory:
        make_jobspecs(Path(directory), options.jobs)
        for number in range(options.runs):
            for kind in kinds:
                rates[kind].append(run(kind, Path(directory), options.jobs))
                print(
                    f"  run {number + 1}, {kind}: {rates[kind][-1]:.1f} jobs/s", file=sys.stderr, flush=True
                )
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    print(f"\n{options.jobs} jobs `sleep 0`, medians of {options.runs} runs\n")
    print("| | jobs/s | lowest … highest |")
    print("|---|---:|---|")
    for kind, values in rates.items():
        print(f"| {kind} | {medians[kind]:.1f} | {min(values):.1f} … {max(values):.1f} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rates, indent=1) + "\n")
    missed = 0
    print()
    for kind, peer, least in TARGETS:
        if kind in medians and peer in medians:
            ratio = medians[kind] / medians[peer]
            missed += ratio < least
            print(f"{kind} : {peer} = {ratio:.2f}, must reach {least:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
