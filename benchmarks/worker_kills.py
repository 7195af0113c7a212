"""Run many small tasks while a random worker process is killed with SIGKILL every 200 ms.

::

    python benchmarks/worker_kills.py                                  # 100,000 tasks, embedded instance
    python benchmarks/worker_kills.py --instance flux --parsl --retries 2 --seed 7

Promises, checked and printed:

* every future ends, once, with the right value or with an error of ``parsl_flux_bulk.errors`` that names
  the task;
* no task runs twice, unless Parsl retries the task: every run appends a line to the file of its process;
* a task whose future has a value ran to its end;
* no process is left behind.

The exit status is 1 if a promise was broken. At most ``--window`` tasks wait at a time, and ended futures are
dropped, so that the growth of this process's memory is what the executor and Parsl keep of ended tasks.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import parsl
from fault_tasks import value_of, work
from faults import Processes, Promises, Records, resident, run_directory, task_in

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import FluxBulkError

ENDS = "every future ends"
ENDS_RIGHT = "a future ends with the right value, or with an error that names its task"
ONCE = "no task runs twice unless Parsl retries it"
RAN = "a task with a value ran to its end"
NOTHING_LEFT = "no process is left behind"


class Outcomes:
    """How the tasks ended, counted as their futures end.

    Attributes
    ----------
    tries : bytearray
        By task: how often Parsl gave the task to the executor; 0 until the future ends.
    lost : dict
        By task: the error's class.
    """

    def __init__(self, tasks: int, window: int, promises: Promises) -> None:
        self.tries = bytearray(tasks)
        self.lost: dict[int, str] = {}
        self.room = threading.Semaphore(window)
        self._named: set[tuple[str, int] | None] = set()
        self._promises = promises

    def settle(self, number: int, future: Future[int]) -> None:
        """Check how a task ended; called by its future."""
        failures = future.task_record["fail_count"] if hasattr(future, "task_record") else 0
        error = future.exception()
        self._promises.check(self.tries[number] == 0, ENDS_RIGHT, f"task {number} ended twice")
        self.tries[number] = min(255, failures + (error is None or not failures))
        if error is None:
            value = future.result()
            self._promises.check(value == value_of(number), ENDS_RIGHT, f"task {number}: value {value!r}")
        else:
            self.lost[number] = type(error).__name__
            named = task_in(error)
            right = isinstance(error, FluxBulkError) and named is not None and named not in self._named
            self._promises.check(right, ENDS_RIGHT, f"task {number}: {error!r}")
            self._named.add(named)
        self.room.release()


class Killer(threading.Thread):
    """Kill a random worker process every so often."""

    def __init__(self, every: float, seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        self.killed = 0
        self.processes = Processes()
        self._every = every
        self._random = random.Random(seed)
        self._stop_now = threading.Event()

    def run(self) -> None:
        """Kill until `stop` is called."""
        while not self._stop_now.wait(self._every):
            workers = self.processes.find("worker")
            if workers:
                self.killed += self.processes.send(self._random.choice(workers), signal.SIGKILL)

    def stop(self) -> None:
        """Kill no more."""
        self._stop_now.set()
        self.join()


@contextlib.contextmanager
def started(instance: str, with_parsl: bool, retries: int) -> Iterator[Callable[..., Future[int]]]:
    """Start the executor, under Parsl or alone; yield what submits a task."""
    executor = FluxBulkExecutor(instance=instance)
    if with_parsl:
        config = parsl.Config(
            executors=[executor], retries=retries, run_dir="parsl", initialize_logging=False, strategy="none"
        )
        with parsl.load(config):
            yield parsl.python_app(work)
        return
    executor.run_dir = "alone"
    executor.start()
    try:
        yield lambda *arguments: executor.submit(work, {}, *arguments)
    finally:
        executor.shutdown()


def submit_all(
    submit: Callable[..., Future[int]], options: argparse.Namespace, directory: str, outcomes: Outcomes
) -> float:
    """Submit every task and wait for all; return the growth of memory in bytes a task."""
    tasks: int = options.tasks
    before, warm = resident(), tasks // 5
    held = 0
    for number in range(tasks):
        if not outcomes.room.acquire(timeout=options.bound):
            raise TimeoutError(f"no future ended in {options.bound:g} s, {number} were submitted")
        if number == warm:
            before = resident()
        future = submit(directory, number, options.task_seconds)
        future.add_done_callback(functools.partial(outcomes.settle, number))
    after = resident()  # with as many waiting tasks as before
    while held < options.window:
        if not outcomes.room.acquire(timeout=options.bound):
            pending = outcomes.tries.count(0)
            raise TimeoutError(f"{pending} tasks are pending, and none ended in {options.bound:g} s")
        held += 1
    return (after - before) / (tasks - warm)


def check_runs(outcomes: Outcomes, records: Records, promises: Promises) -> tuple[int, int]:
    """Compare futures with what the tasks recorded; return lost tasks that never started, and retries."""
    records.update()
    for (number, _), runs in records.starts.items():
        tries = outcomes.tries[number]
        promises.check(runs <= max(tries, 1), ONCE, f"task {number}: {runs} runs, {tries} tries")
    for number, tries in enumerate(outcomes.tries):
        if tries and number not in outcomes.lost:
            promises.check(number in records.ends, RAN, f"task {number}")
    unstarted = sum((number, 0) not in records.starts for number in outcomes.lost)
    return unstarted, sum(tries - 1 for tries in outcomes.tries if tries)


def run(options: argparse.Namespace, base: Path) -> int:
    """Run the tasks, check the promises, print figures; return the exit status."""
    promises = Promises()
    outcomes = Outcomes(options.tasks, options.window, promises)
    killer = Killer(options.every, options.seed)
    growth, began = 0.0, time.perf_counter()
    with started(options.instance, options.parsl, options.retries) as submit:
        killer.start()
        try:
            growth = submit_all(submit, options, str(base / "records"), outcomes)
        except TimeoutError as error:
            promises.check(False, ENDS, error)
        seconds = time.perf_counter() - began
        killer.stop()
    left = killer.processes.left()
    promises.check(not left, NOTHING_LEFT, left)
    unstarted, retried = check_runs(outcomes, Records(base / "records"), promises)
    ended = len(outcomes.tries) - outcomes.tries.count(0)
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(outcomes.lost.values()).items()) or "none"
    way = f"Parsl with {options.retries} retries" if options.parsl else "without Parsl"
    print(f"instance {options.instance}, {way}, seed {options.seed}")
    print(f"{ended} of {options.tasks} tasks ended in {seconds:.1f} s: {ended / seconds:.0f} tasks/s")
    print(f"{killer.killed} workers killed, one every {1000 * options.every:g} ms")
    print(f"{len(outcomes.lost)} tasks lost ({kinds}), {unstarted} of them never started; {retried} retries")
    print(f"memory growth {growth:.0f} bytes a task")
    return promises.summary()


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=100_000, help="number of tasks (default 100000)")
    parser.add_argument("--instance", default="local", help="local, flux or a URI (default local)")
    parser.add_argument("--parsl", action="store_true", help="submit through Parsl's DataFlowKernel")
    parser.add_argument("--retries", type=int, default=0, help="Parsl's retries, with --parsl (default 0)")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between kills (default 0.2)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the choice of workers (default 1)")
    parser.add_argument(
        "--task-seconds", type=float, default=0.0, help="seconds that a task takes (default 0)"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=5000,
        help="largest number of waiting tasks (default 5000, and at most a tenth of the tasks)",
    )
    parser.add_argument(
        "--bound", type=float, default=60.0, help="seconds without an ended future that count as a hang"
    )
    parser.add_argument("--keep", action="store_true", help="keep the files of the run")
    options = parser.parse_args()
    if options.retries and not options.parsl:
        parser.error("--retries needs --parsl: without Parsl nothing retries a task")
    options.window = max(1, min(options.window, options.tasks // 10))
    with run_directory(options.keep) as base:
        return run(options, base)


if __name__ == "__main__":
    sys.exit(main())
