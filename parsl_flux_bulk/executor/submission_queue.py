"""What other threads hand to the executor's runtime: tasks, cancellations and other requests."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, InvalidStateError
from itertools import islice
from typing import Any

from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.pipeline.callbacks import CallbackFuture
from parsl_flux_bulk.scheduler.model import WorkerJob
from parsl_flux_bulk.scheduler.state_machine import Scheduler
from parsl_flux_bulk.scheduler.states import TaskState
from parsl_flux_bulk.scheduler.story import Record
from parsl_flux_bulk.scheduler.task import Task

HAND_OVER_TIME = 0.02
"""Seconds for which the scheduler is handed tasks in one turn, unless a request waits behind them: 50,000
calls. A flood that came in parts would start its workers in parts."""

_HANDED_OVER_AT_ONCE = 1000


class TaskFuture(CallbackFuture[Any]):
    """An executor's future. Canceling it also ends a running task.

    Attributes
    ----------
    parsl_executor_task_id : int
        The executor's id of the task, which Parsl logs beside its own.
    """

    def __init__(self, queue: SubmissionQueue, task: Task) -> None:
        super().__init__()
        self.parsl_executor_task_id = task.task_id
        self._task: Task | None = task
        self._queue = weakref.ref(queue)

    def cancel(self) -> bool:
        """Cancel the task: drop one that waits, and end one that runs with its process or job.

        Returns
        -------
        bool
            False if the task has ended already.
        """
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()  # wakes threads that wait for several futures
        queue, task = self._queue(), self._task
        self._task = None
        if queue is not None and task is not None:
            queue.cancel(task)
        return True

    # A future that the user keeps must not keep the arguments of its call. Not by a weak reference: one more
    # object for the garbage collector to visit per task costs a flood of tasks a quarter of its rate.

    def set_result(self, result: Any) -> None:
        """Set the result, and let go of the task."""
        self._task = None
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        """Set the exception, and let go of the task."""
        self._task = None
        super().set_exception(exception)

    def story(self) -> list[Record]:
        """Return what the scheduler decided about the task; see `FluxBulkExecutor.story`."""
        queue, now = self._queue(), time.monotonic()
        if queue is None or queue.scheduler is None:
            why = "the instance is not ready" if queue is not None else "the executor was shut down"
            return [Record(now, "now", why, (self.parsl_executor_task_id,))]
        return queue.scheduler.story(now, self.parsl_executor_task_id, self._task)


class SubmissionQueue:
    """Tasks and requests on their way from any thread to the runtime in the completion thread.

    The queue exists before the instance is ready, keeps what comes in until then, and outlives the runtime:
    once it has failed, every task that it is given fails at once.

    Parameters
    ----------
    wake : callable
        Makes the completion thread give the runtime a turn.

    Attributes
    ----------
    error : Exception or None
        Why no more tasks can run.
    scheduler : Scheduler or None
        None until the instance is ready. Other threads may only read its counts.
    taken, ended : int
        Tasks that the scheduler was given, and those of them that ended; written under the runtime's lock.
    turn_at_once : callable
        Assigns the only task in the calling thread if that is possible at once, and returns whether it was.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._tasks: deque[Task] = deque()
        self._requests: deque[Callable[[Scheduler], None]] = deque()
        self._waiters: deque[threading.Event] = deque()
        self.error: Exception | None = None
        self.scheduler: Scheduler | None = None
        self.turn_at_once: Callable[[], bool] = _not_yet
        self.taken = 0
        self.ended = 0

    # -- any thread ---------------------------------------------------------------------------

    def new_future(self, task: Task) -> TaskFuture:
        """Return the future of a task."""
        return TaskFuture(self, task)

    def put(self, task: Task) -> None:
        """Enqueue a task.

        Raises
        ------
        InstanceLost, ExecutorClosed, BadStateException
            If no more tasks can run.
        """
        if self.error is not None:
            raise new_error(self.error)
        self._tasks.append(task)
        if not self.turn_at_once():
            self._wake()
        if self.error is not None:
            self._fail_tasks(self.error)  # the runtime may have taken its last turn meanwhile

    def cancel(self, task: Task) -> None:
        """End a task whose future was canceled."""
        self._request(lambda scheduler: scheduler.cancel(task))

    def cancel_pending(self, futures: Collection[Future[Any]] | None = None) -> None:
        """Cancel those of the tasks, by default of all tasks, that no worker or job has."""

        def cancel(scheduler: Scheduler) -> None:
            for task in scheduler.pending():
                if futures is None or task.future in futures:
                    task.future.cancel()

        self._request(cancel)

    def with_task(
        self,
        task_id: int,
        call: Callable[[Scheduler, int, Task | None], None],
    ) -> None:
        """Call a function in the completion thread, with the task of an id; None if it has ended."""
        self._request(lambda scheduler: call(scheduler, task_id, find_task(scheduler, task_id)))

    def join(self) -> None:
        """Wait until every task has ended, or no more tasks can run."""
        idle = threading.Event()
        self._waiters.append(idle)
        self._wake()
        if self.error is None:
            idle.wait()

    def drain(self, chosen: Callable[[JobId], bool]) -> None:
        """Assign no more tasks to the workers of the chosen jobs."""

        def is_chosen(job: WorkerJob) -> bool:
            return job.job_id is not None and chosen(job.job_id)

        self._request(lambda scheduler: scheduler.drain_jobs(is_chosen, "its block is to end"))

    def fail(self, error: Exception) -> None:
        """End all tasks with an error, also those to come; the first error counts."""
        if self.error is None:
            self.error = error
        self._wake()
        self._fail_tasks(self.error)
        self._release_waiters()

    @property
    def nodes(self) -> int:
        """Number of nodes of the instance that are up; 0 before the instance is ready."""
        return self.scheduler.nodes if self.scheduler is not None else 0

    @property
    def workers(self) -> int:
        """Number of connected workers."""
        return self.scheduler.workers if self.scheduler is not None else 0

    def slots(self, resources: Resources) -> int:
        """Return the number of tasks that may run at the same time; 1 before the instance is ready."""
        return self.scheduler.slots(resources) if self.scheduler is not None else 1

    @property
    def outstanding(self) -> int:
        """Number of tasks that have not ended."""
        return self.taken - self.ended + len(self._tasks)

    def demand(self) -> list[tuple[Resources | Shape, int]]:
        """Return what the tasks that have not ended need: each kind of resources, and how many tasks."""
        scheduler = self.scheduler
        waiting = Counter(task.resources for task in list(self._tasks))
        return [*(scheduler.demand() if scheduler is not None else ()), *waiting.items()]

    def _request(self, request: Callable[[Scheduler], None]) -> None:
        self._requests.append(request)
        self._wake()

    def _fail_tasks(self, error: Exception) -> None:
        for task in self._pop_tasks():
            task.move_to(TaskState.DONE)
            resolve(task.future, None, new_error(error))

    def _pop_tasks(self) -> Iterator[Task]:
        # Two threads may pop at the same time, once the queue has failed.
        while self._tasks:
            try:
                yield self._tasks.popleft()
            except IndexError:
                return

    # -- the completion thread ----------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether anything waits for the runtime."""
        return bool(self._tasks or self._requests)

    def hand_over(self, scheduler: Scheduler) -> None:
        """Pass tasks and requests to the scheduler, or shut it down if no more tasks can run."""
        if self.error is not None:
            self._requests.clear()
            scheduler.shutdown()
        # Counted first: the task that a request cancels is in the queue before the request is.
        requests = len(self._requests)
        left = len(self._tasks)
        everything = requests or self.error is not None
        end = math.inf if everything else time.monotonic() + HAND_OVER_TIME
        while left > 0:
            scheduler.submit(islice(self.take(), min(left, _HANDED_OVER_AT_ONCE)))
            left -= _HANDED_OVER_AT_ONCE
            if time.monotonic() > end:
                break
        for _ in range(requests):
            self._requests.popleft()(scheduler)

    def tell_if_idle(self) -> None:
        """Release those who wait until every task has ended, if so."""
        if self._waiters and self.taken == self.ended and not self:
            self._release_waiters()

    def _release_waiters(self) -> None:
        while self._waiters:
            with contextlib.suppress(IndexError):  # two threads may release at the same time
                self._waiters.popleft().set()

    def take(self) -> Iterator[Task]:
        """Remove the tasks, for the scheduler."""
        for task in self._pop_tasks():
            self.taken += 1
            yield task


def _not_yet() -> bool:
    return False


def find_task(scheduler: Scheduler, task_id: int) -> Task | None:
    """Return the task of an id that has not ended, if there is one."""
    lifecycle = scheduler.lifecycle
    alone = [job.task for job in lifecycle.task_jobs]
    queued = [t for group in lifecycle.groups.values() for worker in group.busy for t in worker.queue]
    return next((task for task in (*alone, *queued, *scheduler.pending()) if task.task_id == task_id), None)


def new_error(error: Exception) -> Exception:
    """Return a copy for one future.

    An exception that is raised keeps the frames that it passes, and whatever these refer to: one that all
    futures shared would collect those of everyone who asks for a result, and the queue would keep them.
    """
    copied = copy.copy(error)
    copied.__traceback__ = None
    return copied


def resolve(future: Future[Any], result: Any, error: BaseException | None) -> None:
    """Set the result or the exception of a future, unless the future was canceled."""
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except InvalidStateError:
        pass
