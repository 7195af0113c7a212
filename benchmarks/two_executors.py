"""Compare two executors in one Flux instance with one executor that runs the same tasks.

``python benchmarks/two_executors.py [--tasks 20000] [--milliseconds 2] [--runs 3]`` alternates, each time in
a new process and a fresh Flux instance on this machine:

* *one*: all tasks on one FluxBulkExecutor
* *two*: every other task on a second FluxBulkExecutor in the same instance

A task sleeps. The time is from the first submission, before there are workers, to the last result. The
output has the times, their medians in seconds, and the ratio of the medians. The exit status is 1 if the
ratio is above ``--most``.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time

from flux_instance import flux_instance, flux_missing


def measure(uri: str, executors: int, tasks: int, seconds: float, idle: float) -> float:
    """Run tasks over so many executors in an instance, and return the seconds that they took."""
    from parsl_flux_bulk import FluxBulkExecutor

    with contextlib.ExitStack() as stack:
        started = []
        for number in range(executors):
            executor = FluxBulkExecutor(label=f"executor{number}", instance=uri, worker_idle_time=idle)
            executor.run_dir = stack.enter_context(tempfile.TemporaryDirectory())
            started.append(stack.enter_context(executor))
        began = time.perf_counter()
        futures = [started[n % executors].submit(time.sleep, {}, seconds) for n in range(tasks)]
        for future in futures:
            future.result()
        return time.perf_counter() - began


def in_a_process(executors: int, *options: str) -> float:
    """Measure in a new process and a fresh instance."""
    with flux_instance() as uri:
        command = [sys.executable, __file__, "--measure", uri, str(executors), *options]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--milliseconds", type=float, default=2.0, help="duration of a task")
    parser.add_argument("--worker-idle-time", type=float, default=3.0, help="of the executors, in seconds")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.1, help="ratio that is still good")
    parser.add_argument("--measure", nargs=2, metavar=("URI", "EXECUTORS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        uri, executors = options.measure
        print(
            measure(uri, int(executors), options.tasks, options.milliseconds / 1000, options.worker_idle_time)
        )
        return 0
    missing = flux_missing()
    if missing:
        print(missing, file=sys.stderr)
        return 1
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.runs):
        for executors, measured in times.items():
            measured.append(in_a_process(executors, *sys.argv[1:]))
            print(f"{executors} executor(s): {measured[-1]:.2f} s", flush=True)
    one, two = (statistics.median(measured) for measured in times.values())
    print(f"medians: one {one:.2f} s, two {two:.2f} s; two / one: {two / one:.3f}, at most {options.most:g}")
    return int(two / one > options.most)


if __name__ == "__main__":
    sys.exit(main())
