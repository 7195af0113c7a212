"""The load of ``soak.py``: kinds of tasks, the right outcome of each, and what submits and checks them."""

from __future__ import annotations

import argparse
import contextlib
import queue
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, NamedTuple

import fault_tasks
import parsl
from fault_tasks import Planned, value_of
from faults import Promises, Records, task_in
from parsl.app.errors import BashExitFailure

from parsl_flux_bulk.errors import InstanceLost, JobError, TaskCrashed

ENDS = "every future ends"
RIGHT = "a future ends with the right value or the task's own error"
NAMED = "the error of a lost task names the task"
NO_LOSS = "without a fault no task is lost"
ONCE = "no task runs twice, or after its future has ended"
RAN = "a task with a value ran to its end"
STOPPED = "a lost or canceled task does not run on"

RUN_ON = 5.0
"""Seconds for which a lost or canceled task may still run."""

FAULTS = {"worker", "manager", "rank", "shell", "broker", "instance"}
"""Faults after which a task may be lost."""

JOB = {"num_tasks": 1}
RANKS = {"num_tasks": 2}

work = parsl.python_app(fault_tasks.work)
work_on_ranks = parsl.python_app(fault_tasks.work_on_ranks)
big = parsl.python_app(fault_tasks.big)
fail = parsl.python_app(fault_tasks.fail)
leave = parsl.python_app(fault_tasks.leave)
exit_python = parsl.python_app(fault_tasks.exit_python)
fill_disk = parsl.python_app(fault_tasks.fill_disk)
command = parsl.bash_app(fault_tasks.command)

Judge = Callable[[int, Any, BaseException | None], bool]


class Kind(NamedTuple):
    """A kind of task: how often, how it is submitted, and what its right outcome is."""

    weight: int
    submit: Callable[[str, int, random.Random], Future[Any]]
    is_right: Judge


def _value(number: int, value: Any, error: BaseException | None) -> bool:
    return error is None and value == value_of(number)


def _zero(number: int, value: Any, error: BaseException | None) -> bool:
    return error is None and value == 0


def _exit_status(status: int) -> Judge:
    return lambda _, __, error: isinstance(error, BashExitFailure) and error.exitcode == status


def _data(number: int) -> bytes:
    return number.to_bytes(8, "big") * (125_000 * (1 + number % 4))


KINDS = {
    "short": Kind(40, lambda where, n, _: work(where, n), _value),
    "long": Kind(8, lambda where, n, r: work(where, n, r.uniform(0.1, 0.6)), _value),
    "big": Kind(
        5,
        lambda where, n, _: big(where, n, _data(n)),
        lambda n, value, error: error is None and value == (zlib.crc32(_data(n)), _data(n)[::-1]),
    ),
    "raises": Kind(
        6,
        lambda where, n, _: fail(where, n),
        lambda n, _, error: isinstance(error, Planned) and error.args == (n,),
    ),
    "leaves": Kind(
        3,
        lambda where, n, _: leave(where, n, 3),
        lambda n, _, error: isinstance(error, TaskCrashed) and error.exit_code == 3 and bool(task_in(error)),
    ),
    "exits": Kind(
        2,
        lambda where, n, _: exit_python(where, n, 3),
        lambda n, _, error: isinstance(error, TaskCrashed) and "sys.exit(3)" in str(error),
    ),
    "disk": Kind(2, lambda where, n, _: fill_disk(where, n), lambda n, _, error: isinstance(error, OSError)),
    "disk-bash": Kind(2, lambda where, n, _: command(where, n, stdout="/dev/full"), _exit_status(9)),
    "disk-job": Kind(
        1,
        lambda where, n, _: command(where, n, stdout="/dev/full", parsl_resource_specification=JOB),
        lambda n, _, error: error is not None,
    ),
    "bash": Kind(10, lambda where, n, r: command(where, n, seconds=r.choice([0, 0.3])), _zero),
    "bash-fails": Kind(4, lambda where, n, _: command(where, n, status=7), _exit_status(7)),
    "bash-job": Kind(4, lambda where, n, _: command(where, n, parsl_resource_specification=JOB), _zero),
    "bash-job-fails": Kind(
        2, lambda where, n, _: command(where, n, status=7, parsl_resource_specification=JOB), _exit_status(7)
    ),
    "job": Kind(4, lambda where, n, _: work(where, n, 0.1, parsl_resource_specification=JOB), _value),
    "ranks": Kind(2, lambda where, n, _: work_on_ranks(where, n, parsl_resource_specification=RANKS), _value),
    "cancel": Kind(4, lambda where, n, _: work(where, n, 30), lambda n, _, error: False),
    "cancel-job": Kind(
        1, lambda where, n, _: work(where, n, 30, parsl_resource_specification=JOB), lambda n, _, error: False
    ),
}


class Pending(NamedTuple):
    """A task whose future has not ended."""

    kind: str
    future: Future[Any]


class Load:
    """Submits tasks, cancels some, and checks how each ended."""

    def __init__(self, options: argparse.Namespace, base: Path, promises: Promises) -> None:
        self.pending: dict[int, Pending] = {}
        self.lost: Counter[str] = Counter()
        self.submitted = self.right = 0
        self.may_lose = bool(FAULTS - set(options.without))
        self.may_lose_instance = False
        self._directory = str(base / "records")
        self._records = Records(base / "records")
        self._promises = promises
        self._options = options
        self._random = random.Random(options.seed)
        kinds = {
            name: kind
            for name, kind in KINDS.items()
            if not {name, name.split("-")[0]} & set(options.without)
        }
        self._names, self._weights = list(kinds), [kind.weight for kind in kinds.values()]
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._to_cancel: list[tuple[float, int]] = []
        self._canceled: set[int] = set()
        self._with_value: list[int] = []
        self._checked = 0

    def run(self, until: float, at: float | None = None, action: Callable[[], object] = int) -> None:
        """Keep tasks outstanding until a time; call `action` once at another."""
        while (now := time.monotonic()) < until:
            if at is not None and now >= at:
                at = None
                action()
            while len(self.pending) < self._options.window:
                self._submit()
            self._cancel(now)
            self._settle(0.02)

    def drain(self) -> float:
        """Wait until every future has ended; return the seconds that it took."""
        began = time.monotonic()
        while self.pending and time.monotonic() < began + self._options.bound:
            self._cancel(time.monotonic())
            self._settle(0.1)
        kinds = Counter(pending.kind for pending in self.pending.values())
        self._promises.check(
            not self.pending, ENDS, f"pending after {self._options.bound:g} s: {dict(kinds)}"
        )
        return time.monotonic() - began

    def check_records(self) -> None:
        """Compare what the tasks recorded with how their futures ended; forget both."""
        records = self._records
        records.update()
        deadline = time.monotonic() + RUN_ON
        while (running := records.running()) and time.monotonic() < deadline:
            time.sleep(0.2)
            records.update()
        for number, pid in running.items():
            self._promises.check(False, STOPPED, f"task {number} still runs in process {pid}")
        for (number, rank), runs in records.starts.items():
            once = runs == 1 and number >= self._checked
            self._promises.check(once, ONCE, f"task {number} rank {rank}: {runs} runs recorded")
        for number in self._with_value:
            self._promises.check(number in records.ends, RAN, f"task {number}")
        records.starts.clear()
        records.ends.clear()
        self._with_value.clear()
        self._checked = self.submitted

    def _submit(self) -> None:
        number = self.submitted
        name = self._random.choices(self._names, self._weights)[0]
        future = KINDS[name].submit(self._directory, number, self._random)
        self.submitted += 1
        self.pending[number] = Pending(name, future)
        future.add_done_callback(lambda _: self._ended.put(number))
        # Added last: after a callback that raises SystemExit, a future calls no other one.
        if "callback" not in self._options.without and self._random.random() < 0.01:
            with contextlib.suppress(SystemExit):  # raised here if the future has ended already
                future.add_done_callback(lambda _: sys.exit(1))
        if name.startswith("cancel"):
            self._to_cancel.append((time.monotonic() + self._random.uniform(0, 2), number))

    def _cancel(self, now: float) -> None:
        for due, number in list(self._to_cancel):
            pending = self.pending.get(number)
            # Documented in docs/executor.md: AppFuture.cancel is not implemented.
            inner = pending.future.task_record["exec_fu"] if pending else None  # type: ignore[attr-defined]
            if pending is None or (due < now and inner is not None):
                self._to_cancel.remove((due, number))
                if inner is not None and inner.cancel():
                    self._canceled.add(number)

    def _settle(self, wait: float) -> None:
        try:
            while True:
                self._judge(self._ended.get(timeout=wait))
                wait = 0.0
        except queue.Empty:
            pass

    def _judge(self, number: int) -> None:
        name, future = self.pending.pop(number)
        value, error = outcome(future)
        if error is None:
            self._with_value.append(number)
        canceled = number in self._canceled
        self._canceled.discard(number)
        if isinstance(error, CancelledError) if canceled else KINDS[name].is_right(number, value, error):
            self.right += 1
            return
        seen = f"task {number} ({name}): {value!r:.100} {error!r}"
        is_loss = isinstance(error, (TaskCrashed, JobError))
        if isinstance(error, InstanceLost) and self.may_lose_instance:
            self.lost[type(error).__name__] += 1
        elif is_loss and error is not None and not canceled:
            self.lost[type(error).__name__] += 1
            self._promises.check(task_in(error) is not None, NAMED, seen)
            self._promises.check(self.may_lose, NO_LOSS, seen)
        else:
            self._promises.check(False, RIGHT, seen)


def outcome(future: Future[Any]) -> tuple[Any, BaseException | None]:
    """Return the value and the error of a future that has ended."""
    try:
        return future.result(timeout=0), None
    except BaseException as error:
        return None, error
