"""What the scheduler decided, and why: two bounded logs, and the lines about one task.

Decisions about jobs and groups, and ends of tasks other than with their own outcome, are in one log;
assignments, which are many, are in another, one record for all tasks of an instruction. Every record is also
a line of the DEBUG log. The time is that of the scheduler's clock.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import attrgetter
from typing import TypeAlias

from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.model import ExecutorJob, TaskJob, Worker, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.states import TaskJobState
from parsl_flux_bulk.scheduler.task import CallTask, Task
from parsl_flux_bulk.scheduler.timers import Timers

logger = logging.getLogger(__name__)

DECISIONS_LIMIT = 4096
"""Records of decisions that are kept: about 1 MB."""

ASSIGNMENTS_LIMIT = 2048
"""Records of assignments that are kept: about 3 MB if each has 128 tasks."""


@dataclass(frozen=True, slots=True)
class Record:
    """One decision.

    Attributes
    ----------
    time : float
        Seconds, by the scheduler's clock.
    event : str
        Such as "submit", "assign", "recall", "wait".
    cause : str
        Why; "" if the event says it.
    tasks : sequence of int
        Ids of the tasks concerned; empty if it concerns a job or a group as a whole.
    job : int
        Token of the job concerned; 0 if none.
    shape : Shape or None
        The worker group concerned.
    """

    time: float
    event: str
    cause: str = ""
    tasks: Sequence[int] = ()
    job: int = 0
    shape: Shape | None = None

    def __str__(self) -> str:
        parts = [f"{self.time:.3f} {self.event}"]
        if self.job:
            parts.append(f"job={self.job}")
        if self.shape is not None:
            parts.append(f"shape={self.shape.cores}c{self.shape.gpus}g")
        if len(self.tasks) == 1:
            parts.append(f"task={self.tasks[0]}")
        elif self.tasks:
            parts.append(f"tasks={len(self.tasks)}")
        return " ".join(parts) + (f": {self.cause}" if self.cause else "")


_Assignment: TypeAlias = "tuple[float, int, str, Sequence[int], int, Shape]"


def _assignment(time: float, slot: int, host: str, ids: Sequence[int], token: int, shape: Shape) -> Record:
    # Made when it is read: an assignment is recorded in 0.5 us, a Record takes three times as long.
    return Record(time, "assign", f"worker {slot} on {host}", ids, token, shape)


class Story:
    """The two logs.

    Methods that add a record are for the scheduler; `of` and `now` may be called in any thread.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._decisions: deque[Record] = deque(maxlen=DECISIONS_LIMIT)
        self._assignments: deque[_Assignment] = deque(maxlen=ASSIGNMENTS_LIMIT)
        self._waits: dict[object, str] = {}

    # -- adding ------------------------------------------------------------------------------------

    def job(self, event: str, job: WorkerJob | TaskJob, cause: str = "") -> None:
        """Record a decision about a job."""
        self._add(self._record(event, job, cause))

    def group(self, event: str, group: WorkerGroup, cause: str) -> None:
        """Record a decision about a worker group."""
        self._add(Record(self._timers.now, event, cause, shape=group.shape))

    def task(self, event: str, task: Task, cause: str = "", job: ExecutorJob | None = None) -> None:
        """Record a decision about a task."""
        token = job.token if job is not None else 0
        record = Record(self._timers.now, event, cause, (task.task_id,), token, task.resources.shape)
        self._add(record)

    def waits(self, group: WorkerGroup | None, reason: str, room: Callable[[], str] | None = None) -> None:
        """Record why a group gets no worker, or (None) why no task job is submitted; each reason once."""
        if self._waits.get(group) != reason:
            self._waits[group] = reason
            cause = f"{reason}; {room()}" if room is not None else reason
            shape = group.shape if group is not None else None
            self._add(Record(self._timers.now, "wait", cause, shape=shape))

    def proceeds(self, group: WorkerGroup) -> None:
        """Note that a group got further workers."""
        self._waits.pop(group, None)

    def assigned(self, worker: Worker, tasks: Sequence[CallTask]) -> None:
        """Record that a worker was assigned tasks."""
        ids = (tasks[0].task_id,) if len(tasks) == 1 else array("q", [task.task_id for task in tasks])
        entry = (self._timers.now, worker.slot, worker.peer.host, ids, worker.job.token, worker.group.shape)
        self._assignments.append(entry)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", _assignment(*entry))

    def _record(self, event: str, job: WorkerJob | TaskJob, cause: str) -> Record:
        if isinstance(job, TaskJob):
            return Record(self._timers.now, event, cause, (job.task.task_id,), job.token)
        return Record(self._timers.now, event, cause, (), job.token, job.shape)

    def _add(self, record: Record) -> None:
        self._decisions.append(record)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", record)

    # -- reading -----------------------------------------------------------------------------------

    def of(self, task_id: int, shape: Shape | None = None) -> list[Record]:
        """Return the records about a task, about the jobs that it was in, and about its group, by time.

        Parameters
        ----------
        task_id : int
        shape : Shape or None
            Of the worker group where it waits, if it does.
        """
        # Copying a deque holds the GIL throughout: the scheduler's thread cannot change it meanwhile.
        records = [*self._decisions.copy(), *starmap(_assignment, self._assignments.copy())]
        own = [record for record in records if task_id in record.tasks]
        jobs = {record.job for record in own if record.job}
        shapes: set[Shape | None] = {record.shape for record in own if record.shape is not None}
        if shape is not None or not shapes:
            shapes.add(shape)
        found = own + [record for record in records if not record.tasks and _concerns(record, jobs, shapes)]
        return sorted(found, key=attrgetter("time"))

    def now(self, task: Task, groups: Mapping[Shape, WorkerGroup]) -> Record:
        """Return a record that says where a task is, and what it waits for."""
        place, waits_for = task.place, ""
        if isinstance(place, Worker):
            where = f"in the queue of worker {place.slot} on {place.peer.host}, in {place.job!r}"
        elif isinstance(place, TaskJob):
            where = f"in {place!r}"
            waits_for = self._waits.get(None, "") if place.state is TaskJobState.HELD else ""
        elif (group := groups.get(task.resources.shape or Shape())) is not None:
            starting = max(0, group.slots - group.workers)
            where = (
                f"one of {group.waiting} tasks that wait for a worker: "
                f"{len(group.busy)} are busy, {len(group.idle)} idle, {starting} starting"
            )
            waits_for = self._waits.get(group, "")
        else:
            where = "on its way to the scheduler"
        return Record(
            self._timers.now, "now", f"{where}; {waits_for}" if waits_for else where, (task.task_id,)
        )


def _concerns(record: Record, jobs: Iterable[int], shapes: Iterable[Shape | None]) -> bool:
    if record.job:
        return record.job in jobs
    return record.shape in shapes
