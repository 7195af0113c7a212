"""The tasks of one shape that wait for a worker, in the order in which they are assigned."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from itertools import islice

from parsl_flux_bulk.scheduler.states import TaskState
from parsl_flux_bulk.scheduler.task import CallTask


class TaskQueue:
    """Tasks with a priority, the smallest first; then tasks returned by workers; then new ones, as they came.

    Canceled tasks stay inside until they are at the head: to search for them would take too long.

    Attributes
    ----------
    waiting : int
        Tasks in the queue that are PENDING.
    """

    __slots__ = ("_ahead", "_new", "waiting")

    def __init__(self) -> None:
        self._new: deque[CallTask] = deque()
        self._ahead: list[tuple[float, int, CallTask]] = []
        self.waiting = 0

    def push(self, task: CallTask) -> None:
        """Add a new task behind all others of its priority."""
        if task.resources.priority is None:
            self._new.append(task)
            self.waiting += 1
        else:
            self.push_back(task)

    def push_back(self, task: CallTask) -> None:
        """Add a task that a worker returned: before the new ones of its priority."""
        priority = task.resources.priority
        heapq.heappush(self._ahead, (math.inf if priority is None else priority, task.task_id, task))
        self.waiting += 1

    def pop(self) -> CallTask:
        """Remove and return the next task; there must be one."""
        self.waiting -= 1
        pending = TaskState.PENDING
        while self._ahead:
            task = heapq.heappop(self._ahead)[2]
            if task.state is pending:
                return task
        while True:
            task = self._new.popleft()
            if task.state is pending:
                return task

    def discard(self) -> None:
        """Note that one of the waiting tasks was canceled."""
        self.waiting -= 1
        if not self.waiting:
            self._new.clear()
            self._ahead.clear()

    def tasks(self) -> list[CallTask]:
        """Return all tasks that wait."""
        tasks = [*(task for *_, task in sorted(self._ahead)), *self._new]
        return [task for task in tasks if task.state is TaskState.PENDING]

    def first(self, count: int) -> list[CallTask]:
        """Return some of the tasks that wait, at most so many."""
        some = [*(task for *_, task in self._ahead[:count]), *islice(self._new, count)]
        return [task for task in some if task.state is TaskState.PENDING][:count]

    def drain(self) -> Iterator[CallTask]:
        """Remove all tasks."""
        while self.waiting:
            yield self.pop()
