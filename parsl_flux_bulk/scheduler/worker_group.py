"""Crews of workers: the workers of one shape, and the tasks that wait for them.

::

    WorkerGroup (a shape: its waiting tasks) ── WorkerJob ── Peer (a pool) ── Worker (a slot: its queue)
                                         TaskJob   ── Peer (a rank)

Records, with no more behaviour than keeps each of them consistent. The jobs are in
:mod:`parsl_flux_bulk.scheduler.model`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.model import Peer, TaskJob, WorkerJob
from parsl_flux_bulk.scheduler.service_time import ServiceTime
from parsl_flux_bulk.scheduler.task import Task, TaskFunction

__all__ = ["NO_LIMIT", "WorkerGroup", "Peer", "TaskJob", "Worker", "WorkerJob", "functions_for"]

FUNCTIONS_LIMIT = 512
"""Functions that a peer is trusted to keep."""

NO_LIMIT = 1 << 30


class Worker:
    """A slot of a pool.

    Attributes
    ----------
    queue : deque of Task
        Given and unanswered, in order: the first may be running, and, for all we know, the others.
    size : int
        Bytes of their calls.
    mark : float
        When it last ended a task, or became busy.
    ended, function_id : int
        Outcomes since `mark`, and the function of the last of them.
    serving : bool
        It may be given tasks.
    active : bool
        It is counted in its job's `busy`.
    touched : bool
        Something happened to it since the last look.
    recalled : bool
        All that it has not started has been asked back, and nothing given since.
    watched : bool
        A timer looks whether its queue stalls.
    cancels : int
        Cancelled tasks in its queue.
    killing : int
        Id of the task that we asked to kill.
    """

    __slots__ = (
        "active",
        "cancels",
        "ended",
        "function_id",
        "group",
        "job",
        "killing",
        "mark",
        "peer",
        "queue",
        "recalled",
        "serving",
        "size",
        "slot",
        "touched",
        "watched",
    )

    def __init__(self, peer: Peer, job: WorkerJob, slot: int) -> None:
        self.peer = peer
        self.job = job
        self.group = job.group
        self.slot = slot
        self.queue: deque[Task] = deque()
        self.size = 0
        self.mark = 0.0
        self.ended = 0
        self.function_id = 0
        self.serving = False
        self.active = False
        self.touched = False
        self.recalled = False
        self.watched = False
        self.cancels = 0
        self.killing = 0

    def remove(self, task_id: int) -> Task | None:
        """Take a task out of the queue, wherever in it; None if it is not there."""
        for task in self.queue:
            if task.task_id == task_id:
                self.queue.remove(task)
                self.size -= len(task.call)
                self.cancels -= task.cancelled
                return task
        return None


class WorkerGroup:
    """All workers of one shape, and the tasks that wait for them.

    Attributes
    ----------
    shape : Shape
    waiting : int
        Tasks that are PENDING here.
    given : int
        Tasks that workers have.
    jobs : dict of WorkerJob to None
        That have not ended.
    slots : int
        Workers to count on, whether there or starting: those of jobs that are not leaving.
    workers : int
        Workers that serve.
    idle, busy : dict of Worker to None
        The workers that serve, by whether they have tasks; ordered.
    laden : dict of Worker to None
        Workers that had more than one task when last given any.
    ready : list of Worker
        Busy ones with an outcome since the last look.
    service_time : ServiceTime
    start_failures : int
        Jobs in a row that ended before there was a worker.
    slot_limit : int
        Largest number of slots for a job; the instance has refused more.
    stopped : bool
        It cannot have more workers than it has.
    wished : float or None
        Since when it has wanted more workers.
    steal_at : float or None
        When `steal` is due.
    """

    __slots__ = (
        "_pending",
        "_returned",
        "busy",
        "given",
        "idle",
        "jobs",
        "laden",
        "ready",
        "service_time",
        "shape",
        "slot_limit",
        "slots",
        "start_failures",
        "steal_at",
        "stopped",
        "waiting",
        "wished",
    )

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._pending: deque[Task] = deque()
        self._returned: list[tuple[int, Task]] = []
        self.waiting = 0
        self.given = 0
        self.jobs: dict[WorkerJob, None] = {}
        self.slots = 0
        self.idle: dict[Worker, None] = {}
        self.busy: dict[Worker, None] = {}
        self.laden: dict[Worker, None] = {}
        self.ready: list[Worker] = []
        self.service_time = ServiceTime()
        self.start_failures = 0
        self.slot_limit = NO_LIMIT
        self.stopped = False
        self.wished: float | None = None
        self.steal_at: float | None = None

    @property
    def workers(self) -> int:
        """Workers that serve."""
        return len(self.idle) + len(self.busy)

    @property
    def outstanding(self) -> int:
        """Tasks that have not ended."""
        return self.waiting + self.given

    def push(self, task: Task) -> None:
        """Add a new task, behind all others."""
        self._pending.append(task)
        self.waiting += 1

    def push_back(self, task: Task) -> None:
        """Add a task that was given before: it goes before the new ones, in the order of ids."""
        heapq.heappush(self._returned, (task.task_id, task))
        self.waiting += 1

    def pop(self) -> Task:
        """Take the next task; there must be one."""
        # Those that were cancelled are still in there: to look for them would take too long.
        self.waiting -= 1
        while self._returned:
            task = heapq.heappop(self._returned)[1]
            if not task.state:
                return task
        while True:
            task = self._pending.popleft()
            if not task.state:
                return task

    def dropped(self) -> None:
        """A waiting task has been ended, and is to be passed over."""
        self.waiting -= 1
        if not self.waiting:
            self._pending.clear()
            self._returned.clear()

    def empty(self) -> Iterator[Task]:
        """Take all."""
        while self.waiting:
            yield self.pop()


def functions_for(peer: Peer, functions: list[TaskFunction]) -> tuple[list[TaskFunction], list[int]]:
    """Note that a peer gets functions it has not; return them, and the ids of those it can forget."""
    known = peer.functions
    forget: list[int] = []
    if len(known) + len(functions) > FUNCTIONS_LIMIT:
        in_use = {task.function.function_id for worker in peer.workers for task in worker.queue}
        spare = len(known) - FUNCTIONS_LIMIT // 2
        forget = [function_id for function_id in list(known)[: max(0, spare)] if function_id not in in_use]
        for function_id in forget:
            del known[function_id]
    for function in functions:
        known[function.function_id] = None
    return functions, forget
