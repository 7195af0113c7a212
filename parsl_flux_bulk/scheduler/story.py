"""What the scheduler decided, and why: two bounded logs, and the records about one task.

Assignments, which are many, have a log of their own, with one entry for all tasks of an instruction. All
other decisions share a log: about jobs and groups, and about tasks that end without an outcome of their own.
An outcome that arrived is not recorded. Every record is also a line of the DEBUG log.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.model import ExecutorJob, TaskJob, Worker, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.states import TaskJobState
from parsl_flux_bulk.scheduler.task import CallTask, Task

logger = logging.getLogger(__name__)

DECISIONS_LIMIT = 4096
"""Decisions that are kept: about 1 MB."""

ASSIGNMENTS_LIMIT = 2048
"""Assignments that are kept: about 3 MB if each has 128 tasks."""


@dataclass(frozen=True, slots=True)
class Record:
    """One decision.

    Attributes
    ----------
    time : float
        Seconds, by the scheduler's clock.
    event : str
        Such as "submit", "assign", "recall", "wait", "end".
    cause : str
    tasks : sequence of int
        Ids of the tasks concerned; empty if the decision concerns a job or a group as a whole.
    job : int
        Token of the job concerned; 0 if none.
    shape : Shape or None
        The worker group concerned.
    """

    time: float
    event: str
    cause: str
    tasks: Sequence[int] = ()
    job: int = 0
    shape: Shape | None = None

    def __str__(self) -> str:
        parts = [f"{self.time:.3f} {self.event}"]
        if self.job:
            parts.append(f"job={self.job}")
        if self.shape is not None:
            parts.append(f"cores={self.shape.cores} gpus={self.shape.gpus}")
        if self.tasks:
            parts.append(f"task={self.tasks[0]}" if len(self.tasks) == 1 else f"tasks={len(self.tasks)}")
        return f"{' '.join(parts)}: {self.cause}"


_Entry: TypeAlias = tuple[int, str, str, Sequence[int], int, Shape | None]
_Log: TypeAlias = deque[tuple[float, _Entry]]
_Assignment: TypeAlias = tuple[int, float, str, Sequence[int], int, float, float]
# A tuple of nothing but numbers, texts and arrays is left alone by the garbage collector. With a Shape in it,
# the tuple made full collections twice as frequent, with 64,000 workers.


class Story:
    """The two logs. `of` and `now` may be called in any thread."""

    def __init__(self) -> None:
        self._unsettled: list[_Entry] = []
        self._count = 0
        self._debug = False
        self._decisions: _Log = deque(maxlen=DECISIONS_LIMIT)
        self._assignments: deque[_Assignment] = deque(maxlen=ASSIGNMENTS_LIMIT)
        self._waits: dict[object, str] = {}
        self._blocked: dict[object, str] = {}

    # -- adding ------------------------------------------------------------------------------------

    def job(self, event: str, job: WorkerJob | TaskJob, cause: str) -> None:
        """Record a decision about a job."""
        if isinstance(job, TaskJob):
            self._add(event, cause, (job.task.task_id,), job.token, None)
        else:
            self._add(event, cause, (), job.token, job.shape)

    def group(self, event: str, group: WorkerGroup | None, cause: str) -> None:
        """Record a decision about a worker group, or (None) about all task jobs."""
        self._add(event, cause, (), 0, group.shape if group is not None else None)

    def task(self, event: str, task: Task, cause: str, job: ExecutorJob | None = None) -> None:
        """Record a decision about a task."""
        token = job.token if job is not None else 0
        self._add(event, cause, (task.task_id,), token, task.resources.shape)

    def waits(self, group: WorkerGroup | None, reason: str, room: Callable[[], str] | None = None) -> None:
        """Record why a group gets no worker, or (None) why no task job is submitted; each reason once."""
        if self._waits.get(group) != reason:
            self._waits[group] = reason
            self.group("wait", group, f"{reason}; {room()}" if room is not None else reason)

    def blocked(self, what: WorkerGroup | TaskJob, reason: str, *, loud: bool) -> None:
        """Record that something outside keeps a task job, or the tasks of a group, from running."""
        if self._blocked.get(what) != reason:
            self._blocked[what] = reason
            if isinstance(what, TaskJob):
                self.job("wait", what, reason)
            else:
                self.group("wait", what, reason)
        if not loud:
            return
        if isinstance(what, TaskJob):
            logger.warning("task waits task=%d name=%s: %s", what.task.task_id, what.task.name, reason)
        else:
            size = what.shape
            logger.warning("tasks wait count=%d cores=%d gpus=%d: %s", what.waiting, *size, reason)

    def proceeds(self, what: WorkerGroup | TaskJob | WorkerJob) -> None:
        """Note that a group gets workers, or that a task job ended."""
        self._waits.pop(what, None)
        self._blocked.pop(what, None)

    def assigned(self, worker: Worker, tasks: Sequence[CallTask], now: float) -> None:
        """Record that a worker was assigned tasks."""
        ids = (tasks[0].task_id,) if len(tasks) == 1 else array("q", [task.task_id for task in tasks])
        self._count += 1
        cores, gpus = worker.group.shape
        self._assignments.append((self._count, now, worker.name, ids, worker.job.token, cores, gpus))
        if self._debug:
            logger.debug("%s", _assignment(self._assignments[-1])[1])

    def _add(self, event: str, cause: str, tasks: Sequence[int], job: int, shape: Shape | None) -> None:
        self._count += 1
        self._unsettled.append((self._count, event, cause, tasks, job, shape))

    def settle(self, now: float) -> None:
        """Set the time of the records since the last call: events have none."""
        self._debug = logger.isEnabledFor(logging.DEBUG)
        for entry in self._unsettled:
            self._decisions.append((now, entry))
            if self._debug:
                logger.debug("%s", Record(now, *entry[1:]))
        self._unsettled.clear()

    def reason(self, what: WorkerGroup | None) -> str:
        """Return why the tasks of a group wait, or (None) why no task job is submitted; "" if not known."""
        return self._blocked.get(what) or self._waits.get(what, "")

    # -- reading -----------------------------------------------------------------------------------

    def of(self, task_id: int, shape: Shape | None = None) -> list[Record]:
        """Return the records about a task, its jobs and its group, in order.

        Parameters
        ----------
        shape : Shape or None
            Of the group where the task waits for a worker: all records of that group are included.
        """
        # Copying a deque holds the GIL throughout: the scheduler's thread cannot change it meanwhile.
        numbered = [(entry[0], Record(time, *entry[1:])) for time, entry in self._decisions.copy()]
        numbered += map(_assignment, self._assignments.copy())
        records = [record for _, record in sorted(numbered, key=itemgetter(0))]
        own = [record for record in records if task_id in record.tasks]
        jobs = {record.job for record in own if record.job}
        shapes = {record.shape for record in own} | {shape}

        def concerns(record: Record) -> bool:
            if record.tasks:
                return task_id in record.tasks
            if record.job:
                return record.job in jobs or record.shape == shape
            return record.shape in shapes

        return [record for record in records if concerns(record)]

    def now(self, now: float, task: Task, groups: Mapping[Shape, WorkerGroup]) -> Record:
        """Return a record that says where a task is, and what it waits for."""
        place, waits_for = task.place, ""
        if isinstance(place, Worker):
            where = f"in the queue of {place.name}, in {place.job!r}"
        elif isinstance(place, TaskJob):
            where = f"in {place!r}"
            waits_for = self._blocked.get(place, "")
            if not waits_for and place.state is TaskJobState.HELD:
                waits_for = self._waits.get(None, "")
        elif (group := groups.get(task.resources.shape or Shape())) is not None and group.waiting:
            starting = max(0, group.slots - group.workers)
            where = (
                f"one of {group.waiting} tasks that wait for a worker: "
                f"{len(group.busy)} are busy, {len(group.idle)} idle, {starting} starting"
            )
            waits_for = self._blocked.get(group) or self._waits.get(group, "")
        else:
            where = "on its way to the scheduler"
        cause = f"{where}; {waits_for}" if waits_for else where
        return Record(now, "now", cause, (task.task_id,))


def _assignment(entry: _Assignment) -> tuple[int, Record]:
    """Return the number and the record of an entry of the log of assignments."""
    number, now, cause, tasks, job, cores, gpus = entry
    return number, Record(now, "assign", cause, tasks, job, Shape(cores, gpus))
