"""Compare bash apps as Flux jobs with bare jobspecs of the same command, and with warm workers.

``python benchmarks/bash.py`` alternates, each time in a fresh Flux instance on this machine:

* *bare*: ``bulksubmit --copies N -- /bin/bash -c true``
* *native*: N bash apps ``true``, each a job of its own (``tasks_per_job=1``)

and prints the rates, their medians and the ratio of the medians. While native apps run, the processes that
Flux's job shells have started are inspected: none may be Python. ``--warm`` adds bash apps in warm workers,
and ``--htex`` bash apps on Parsl's HighThroughputExecutor, with two workers each.

The exit status is 1 if the ratio is below ``--least``, or if a job shell has started Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from flux_instance import flux_instance

_APPS = """
import json, sys, time
import parsl
from parsl.config import Config
kind, jobs, uri = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if kind == "htex":
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider
    executor = HighThroughputExecutor(
        max_workers_per_node=2,
        encrypted=False,
        provider=LocalProvider(min_blocks=1, init_blocks=1, max_blocks=1),
    )
else:
    from parsl_flux_bulk import FluxBulkExecutor
    executor = FluxBulkExecutor(instance=uri, tasks_per_job=1 if kind == "native" else None)

@parsl.bash_app
def app():
    return "true"

with parsl.load(Config(executors=[executor])):
    app().result()
    began = time.monotonic()
    futures = [app() for _ in range(jobs)]
    for future in futures:
        future.result()
    print(json.dumps(jobs / (time.monotonic() - began)))
"""


def bare(jobs: int) -> float:
    """Return the rate that bulksubmit reports."""
    with flux_instance() as uri:
        command = [sys.executable, "-m", "parsl_flux_bulk", "--uri", uri, "--copies", str(jobs), "--"]
        done = subprocess.run(
            [*command, "/bin/bash", "-c", "true"], capture_output=True, text=True, check=True
        )
    match = re.search(rf"Ran {jobs} jobs in .*?s\. ([\d.]+) job/s", done.stdout)
    assert match, done.stdout
    return float(match[1])


def apps(kind: str, jobs: int, python_seen: set[str]) -> float:
    """Return the rate of bash apps; add command lines of Python processes under Flux to `python_seen`."""
    with flux_instance() as uri, tempfile.TemporaryDirectory() as directory:
        ended = threading.Event()
        inspector = threading.Thread(target=_inspect, args=(ended, python_seen))
        if kind == "native":
            inspector.start()
        try:
            done = subprocess.run(
                [sys.executable, "-c", _APPS, kind, str(jobs), uri],
                cwd=directory, env={**os.environ, "PYTHONPATH": _python_path()},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        finally:
            ended.set()
            if kind == "native":
                inspector.join()
    return float(json.loads(done.stdout))


def _python_path() -> str:
    return os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])


def _inspect(ended: threading.Event, seen: set[str]) -> None:
    """Collect command lines of Python processes that the job shells of this process's instance started."""
    while not ended.wait(0.1):
        listing = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        )
        processes: dict[int, tuple[int, str]] = {}
        for line in listing.stdout.splitlines():
            child, parent, *args = line.split(None, 2)
            processes[int(child)] = int(parent), "".join(args)
        for child, (_, args) in processes.items():
            above = list(_ancestors(child, processes))
            in_job = any(
                "flux-shell" in processes[ancestor][1] for ancestor in above if ancestor in processes
            )
            if "python" in args and in_job and os.getpid() in above:
                seen.add(args)


def _ancestors(child: int, processes: dict[int, tuple[int, str]]) -> Iterator[int]:
    while child in processes:
        child = processes[child][0]
        yield child


def main() -> int:
    """Run, print, compare with the target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", "--jobs", type=int, default=500, help="jobs of a run (default: 500)")
    parser.add_argument("-r", "--runs", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--least", type=float, default=0.95, help="lowest ratio that passes (default: 0.95)")
    parser.add_argument("--warm", action="store_true", help="add bash apps in warm workers, 10 times as many")
    parser.add_argument("--htex", action="store_true", help="add HighThroughputExecutor, 10 times as many")
    arguments = parser.parse_args()
    kinds = ["bare", "native", *(k for k in ("warm", "htex") if getattr(arguments, k))]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    python_seen: set[str] = set()
    for run in range(1, arguments.runs + 1):
        for kind in kinds:
            jobs = arguments.jobs if kind in ("bare", "native") else 10 * arguments.jobs
            rate = bare(jobs) if kind == "bare" else apps(kind, jobs, python_seen)
            rates[kind].append(rate)
            print(f"run {run}: {kind:6} {jobs} x true: {rate:7.1f}/s", flush=True)
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    for kind, median in medians.items():
        print(f"median: {kind:6} {median:7.1f}/s")
    ratio = medians["native"] / medians["bare"]
    print(f"native against bare: {ratio:.3f} (must reach {arguments.least})")
    if "warm" in medians and "htex" in medians:
        print(f"warm against HighThroughputExecutor: {medians['warm'] / medians['htex']:.2f}")
    print("Python under Flux while native apps ran:", "; ".join(sorted(python_seen)) or "none")
    return 1 if python_seen or ratio < arguments.least else 0


if __name__ == "__main__":
    sys.exit(main())
