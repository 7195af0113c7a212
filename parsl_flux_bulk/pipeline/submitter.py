"""The batched asynchronous submission thread.

Jobs come in through an inbox. The thread sleeps until there is something that it may do, takes all
of it at once, and has the requests in flight together, some at a time. It keeps the number of jobs
inside the instance bounded; the rest wait here, where waiting costs nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic

from parsl_flux_bulk.errors import ExecutorClosed, InstanceLost
from parsl_flux_bulk.instances.base import (
    Capacity,
    Connection,
    JobId,
    JobRequest,
    Refusal,
)
from parsl_flux_bulk.pipeline.job import JobT

logger = logging.getLogger(__name__)

MIN_ACTIVE_JOBS = 32
"""Jobs kept inside the smallest instance: enough that half of them keep it busy until the next batch, and
few enough that its scheduler does not pay for a long queue (benchmarks/bulksubmit.py --max-active)."""

BATCH_LIMIT = 256

IN_FLIGHT = 8
"""Requests in flight together. Their jobs are waited for, by id, as soon as all of them are answered, and
that must come before the first ends: till then, whoever waits for any job would be told of it."""


class Submitter(Generic[JobT]):
    """The submission thread's state.

    Parameters
    ----------
    connect : callable
        Opens the thread's connection.
    opened : callable
        Called once, in the thread, with the instance's capacity.
    accepted : callable
        Called in the thread with each batch's jobs and what became of them.
    dropped : callable
        Called in the thread with a job that was cancelled before it was submitted, and the reason.
    lost : callable
        Called in the thread, once, when the instance is gone; the thread then ends.
    max_active_jobs : int or None
        Bound on the jobs inside the instance; None means four times its cores, at least MIN_ACTIVE_JOBS.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        opened: Callable[[Capacity], None],
        accepted: Callable[[list[tuple[JobT, JobId | Refusal]]], None],
        dropped: Callable[[JobT, str], None],
        lost: Callable[[InstanceLost], None],
        max_active_jobs: int | None,
    ) -> None:
        self._connect = connect
        self._opened = opened
        self._accepted = accepted
        self._dropped = dropped
        self._lost = lost
        self.max_active_jobs = max_active_jobs
        self._fixed = max_active_jobs is not None
        self._changed = threading.Condition()
        self._pending: deque[tuple[JobT, JobRequest]] = deque()
        self._cancels: deque[tuple[JobT, str]] = deque()
        self._active = 0
        self._closed = False

    # -- any thread ---------------------------------------------------------------------------

    def put(self, job: JobT, request: JobRequest) -> None:
        """Enqueue a job."""
        with self._changed:
            if self._closed:
                raise ExecutorClosed("no jobs can be submitted after shutdown")
            self._pending.append((job, request))
            self._changed.notify()

    def cancel(self, job: JobT, reason: str) -> None:
        """Cancel a job, wherever it is on its way."""
        with self._changed:
            self._cancels.append((job, reason))
            self._changed.notify()

    def release(self, count: int) -> None:
        """Say that so many jobs left the instance."""
        with self._changed:
            self._active -= count
            if self._pending:
                self._changed.notify()

    def resize(self, capacity: Capacity) -> None:
        """Adapt the bound on active jobs to what the instance has, unless the user fixed it."""
        if not self._fixed:
            with self._changed:
                self.max_active_jobs = max(MIN_ACTIVE_JOBS, 4 * capacity.cores)
                self._changed.notify()

    def close(self) -> list[JobT]:
        """End the thread after its current batch; return the jobs that were never submitted."""
        with self._changed:
            self._closed = True
            left = [job for job, _ in self._pending]
            self._pending.clear()
            self._changed.notify()
        return left

    @property
    def backlog(self) -> int:
        """Jobs waiting on our side."""
        return len(self._pending)

    @property
    def active(self) -> int:
        """Jobs inside the instance."""
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
        except Exception as error:
            logger.exception("the submission thread failed")
            self._lost(InstanceLost(f"the submission thread failed: {error!r}"))

    def _next(self, connection: Connection) -> bool:
        batch, cancels, closed = self._take()
        for first in range(0, len(batch), IN_FLIGHT):
            self._submit(connection, batch[first : first + IN_FLIGHT])
        if cancels:
            self._cancel(connection, cancels)
        return not (closed and not cancels)

    def _take(self) -> tuple[list[tuple[JobT, JobRequest]], list[tuple[JobT, str]], bool]:
        """Sleep until there is something to do, then take all of it."""
        assert self.max_active_jobs is not None
        with self._changed:
            while not (self._closed or self._cancels or self._worth_a_batch()):
                self._changed.wait()
            batch: list[tuple[JobT, JobRequest]] = []
            room = min(self.max_active_jobs - self._active, BATCH_LIMIT)
            while self._pending and len(batch) < room:
                job, request = self._pending.popleft()
                if not job.dropped:
                    batch.append((job, request))
            self._active += len(batch)
            cancels = list(self._cancels)
            self._cancels.clear()
            return batch, cancels, self._closed

    def _worth_a_batch(self) -> bool:
        """Whether all that waits can go, or much of it.

        Every batch costs the instance a commit of its own, so that one job at a time would cost it
        more than the few that it has less, as long as it never runs dry.
        """
        assert self.max_active_jobs is not None
        room = self.max_active_jobs - self._active
        return bool(self._pending) and room >= min(len(self._pending), self.max_active_jobs / 2)

    def _submit(self, connection: Connection, batch: list[tuple[JobT, JobRequest]]) -> None:
        answers = connection.submit([request for _, request in batch])
        refused = 0
        for (job, _), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Refusal):
                refused += 1
            else:
                job.job_id = answer
        if refused:
            self.release(refused)
        self._accepted([(job, answer) for (job, _), answer in zip(batch, answers, strict=True)])

    def _cancel(self, connection: Connection, cancels: list[tuple[JobT, str]]) -> None:
        by_reason: dict[str, list[JobId]] = {}
        for job, reason in cancels:
            if job.job_id is None:
                if not job.dropped:
                    job.dropped = True
                    self._dropped(job, reason)
            elif not job.ended:
                by_reason.setdefault(reason, []).append(job.job_id)
        for reason, job_ids in by_reason.items():
            connection.cancel(job_ids, reason)
