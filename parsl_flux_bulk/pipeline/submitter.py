"""The submission thread: submit jobs in batches, asynchronously, and cancel jobs.

The thread sleeps until a batch is worth while, takes all jobs that may go, and has several requests in
flight at a time. The number of jobs inside the instance is bounded; the other jobs wait in this process,
where waiting costs nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic

from parsl_flux_bulk.errors import ExecutorClosed, InstanceLost
from parsl_flux_bulk.instances.base import Capacity, Connection, JobId, JobRequest, Refusal
from parsl_flux_bulk.pipeline.job import JobT

logger = logging.getLogger(__name__)

MIN_ACTIVE_JOBS = 32
"""Jobs kept inside the smallest instance. Half of them keep the instance busy until the next batch, and the
instance's scheduler has no long queue to search (measured with benchmarks/bulksubmit.py --max-active)."""

BATCH_LIMIT = 256
"""Jobs in a batch at most."""


class Submitter(Generic[JobT]):
    """The state of the submission thread.

    Parameters
    ----------
    connect : callable
        Opens the thread's connection.
    opened : callable
        Called once in the thread, first, with the instance's capacity.
    answered : callable
        Called in the thread with the jobs of each batch, each with its id or why it was refused, and with the
        time at which they were submitted.
    dropped : callable
        Called in the thread with a job that was canceled before it was submitted, and the reason.
    lost : callable
        Called once in the thread, last, if the instance is lost.
    max_active_jobs : int or None
        Bound on the jobs inside the instance; None means four times its cores, at least MIN_ACTIVE_JOBS,
        and as many as the connection submits together.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        opened: Callable[[Capacity], None],
        answered: Callable[[list[tuple[JobT, JobId | Refusal]], float], None],
        dropped: Callable[[JobT, str], None],
        lost: Callable[[InstanceLost], None],
        max_active_jobs: int | None,
    ) -> None:
        self._connect = connect
        self._opened = opened
        self._answered = answered
        self._dropped = dropped
        self._lost = lost
        self._fixed = max_active_jobs is not None
        self.max_active_jobs = max_active_jobs or MIN_ACTIVE_JOBS
        self._changed = threading.Condition()
        self._waiting: deque[tuple[JobT, JobRequest]] = deque()
        self._cancellations: deque[tuple[JobT, str]] = deque()
        self._active = 0
        self._together = 1
        self._closed = False

    # -- any thread ---------------------------------------------------------------------------

    def put(self, job: JobT, request: JobRequest) -> None:
        """Enqueue a job."""
        with self._changed:
            if self._closed:
                raise ExecutorClosed("no jobs can be submitted after shutdown")
            self._waiting.append((job, request))
            if self._worth_a_batch():  # in vain, the thread would be woken for each job
                self._changed.notify()

    def cancel(self, job: JobT, reason: str) -> None:
        """Cancel a job that waits or is inside the instance."""
        with self._changed:
            self._cancellations.append((job, reason))
            self._changed.notify()

    def release(self, count: int) -> None:
        """Take note that `count` jobs left the instance."""
        with self._changed:
            self._active -= count
            if self._worth_a_batch():
                self._changed.notify()

    def resize(self, capacity: Capacity) -> None:
        """Adapt the bound on active jobs to the instance's capacity, unless the user set the bound."""
        if not self._fixed:
            with self._changed:
                self.max_active_jobs = max(MIN_ACTIVE_JOBS, 4 * capacity.cores)
                self._changed.notify()

    def close(self) -> list[JobT]:
        """End the thread after its present batch; return the jobs that were never submitted."""
        with self._changed:
            self._closed = True
            left = [job for job, _ in self._waiting]
            self._waiting.clear()
            self._changed.notify()
        return left

    @property
    def waiting(self) -> int:
        """Number of jobs that wait in this process."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Number of jobs inside the instance."""
        return self._active

    # -- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        """Submit and cancel until closed."""
        try:
            connection = self._connect()
            try:
                capacity = connection.capacity()
                self.resize(capacity)
                self._opened(capacity)
                while self._next(connection):
                    pass
            finally:
                connection.close()
        except InstanceLost as error:
            self._lost(error)
        except BaseException as error:
            logger.exception("submission thread failed")
            self._lost(InstanceLost(f"the submission thread failed: {error!r}"))

    def _next(self, connection: Connection) -> bool:
        self._together = connection.in_flight
        batch, cancellations, closed = self._take()
        while batch:
            together = connection.in_flight
            self._submit(connection, batch[:together])
            del batch[:together]
        if cancellations:
            self._cancel(connection, cancellations)
        return not (closed and not cancellations)

    def _take(self) -> tuple[list[tuple[JobT, JobRequest]], list[tuple[JobT, str]], bool]:
        """Sleep until there is something to do, then take all of it."""
        with self._changed:
            while not (self._closed or self._cancellations or self._worth_a_batch()):
                self._changed.wait()
            batch: list[tuple[JobT, JobRequest]] = []
            room = min(self._bound() - self._active, BATCH_LIMIT)
            while self._waiting and len(batch) < room:
                job, request = self._waiting.popleft()
                if not job.dropped:
                    batch.append((job, request))
            self._active += len(batch)
            cancellations = list(self._cancellations)
            self._cancellations.clear()
            return batch, cancellations, self._closed

    def _worth_a_batch(self) -> bool:
        """Return whether all waiting jobs, or half of the active ones, can be submitted at once.

        Every batch costs the instance one commit. As long as the instance does not run dry, it is cheaper for
        it to have a few jobs less than to get them one by one.
        """
        bound = self._bound()
        room = bound - self._active
        return bool(self._waiting) and room >= min(len(self._waiting), bound / 2)

    def _bound(self) -> int:
        """Return how many jobs may be inside the instance. A large batch costs the embedded one least."""
        return self.max_active_jobs if self._fixed else max(self.max_active_jobs, self._together)

    def _submit(self, connection: Connection, batch: list[tuple[JobT, JobRequest]]) -> None:
        submitted_at = time.time()  # jobs may end before the answer is read
        replies = connection.submit([request for _, request in batch])
        answers = [(job, reply) for (job, _), reply in zip(batch, replies, strict=True)]
        refused = 0
        for job, reply in answers:
            if isinstance(reply, Refusal):
                refused += 1
            else:
                job.job_id = reply
        if refused:
            self.release(refused)
        self._answered(answers, submitted_at)

    def _cancel(self, connection: Connection, cancellations: list[tuple[JobT, str]]) -> None:
        by_reason: dict[str, list[JobId]] = {}
        for job, reason in cancellations:
            if job.job_id is None:
                if not job.dropped:
                    job.dropped = True
                    self._dropped(job, reason)
            elif not job.ended:
                by_reason.setdefault(reason, []).append(job.job_id)
        for reason, job_ids in by_reason.items():
            connection.cancel(job_ids, reason)
