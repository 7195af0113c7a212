"""Measure the time to the first result of a new executor, in an instance of which others hold half.

``python benchmarks/first_task.py [--runs 10]`` starts a Flux instance on this machine and alternates:

* *empty*: nothing else runs in the instance
* *half*: a job holds half of its cores

Each run starts a FluxBulkExecutor, and then submits one task, or 100 at once. The time is from the first
submission to the first result. Times are in seconds. The exit status is 1 if a median of *half* is above
``--most``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from flux_instance import flux_instance, flux_missing


def measure(uri: str, tasks: int) -> float:
    """Return the time from the first submission to the first result, in seconds."""
    from parsl_flux_bulk import FluxBulkExecutor

    executor = FluxBulkExecutor(instance=uri)
    with tempfile.TemporaryDirectory() as directory:
        executor.run_dir = directory
        with executor:
            began = time.perf_counter()
            futures = [executor.submit(abs, {}, -1) for _ in range(tasks)]
            futures[0].result()
            return time.perf_counter() - began


def flux(uri: str, *arguments: str) -> str:
    """Run a command of Flux in the instance, and return what it printed."""
    command = ["flux", *arguments]
    environment = {**os.environ, "FLUX_URI": uri}
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def hold_half(uri: str) -> str:
    """Start a job that holds half of the cores; return its id."""
    cores = int(flux(uri, "resource", "list", "-no", "{ncores}", "-s", "up"))
    job = flux(uri, "submit", f"-c{cores // 2}", "sleep", "inf")
    flux(uri, "job", "wait-event", job, "start")
    return job


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--most", type=float, default=1.0, help="seconds that are still good")
    options = parser.parse_args()
    missing = flux_missing()
    if missing:
        print(missing, file=sys.stderr)
        return 1
    times: dict[tuple[str, int], list[float]] = {}
    with flux_instance() as uri:
        for _ in range(options.runs):
            for tasks in (1, 100):
                times.setdefault(("empty", tasks), []).append(measure(uri, tasks))
                job = hold_half(uri)
                times.setdefault(("half", tasks), []).append(measure(uri, tasks))
                flux(uri, "cancel", job)
                flux(uri, "job", "wait-event", job, "clean")
    for (kind, tasks), measured in times.items():
        print(
            f"{kind:5} {tasks:3} task(s): median {statistics.median(measured):.2f} s, "
            f"{min(measured):.2f} to {max(measured):.2f}; load {os.getloadavg()[0]:.0f}"
        )
    return int(any(statistics.median(times["half", tasks]) > options.most for tasks in (1, 100)))


if __name__ == "__main__":
    sys.exit(main())
