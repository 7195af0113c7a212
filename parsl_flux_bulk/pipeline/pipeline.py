"""One instance's pipeline: jobs in, results out.

::

    submit ──> Submitter (thread) ──> instance ──> CompletionLoop (thread) ──> listener, runtime
                    ^                                      |
                    └───────────── release ────────────────┘

The pipeline owns the instance and both threads, knows every job that has not ended, and is what
ends them all when the instance is lost or the pipeline closed. The threads hold the two state
objects, never whoever uses the pipeline.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Generic

from parsl_flux_bulk.errors import ExecutorClosed, InstanceLost
from parsl_flux_bulk.instances.base import EndCause, Instance, JobRequest, JobResult, JobStatus
from parsl_flux_bulk.pipeline.completion import CompletionLoop, Runtime, tell
from parsl_flux_bulk.pipeline.job import JobOwner, JobState, JobT
from parsl_flux_bulk.pipeline.job_errors import canceled
from parsl_flux_bulk.pipeline.submitter import Submitter

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 15.0
"""Seconds that cancelled jobs may take to end at close."""


class Pipeline(Generic[JobT]):
    """Submit jobs to one instance and hear how they end.

    Parameters
    ----------
    instance : Instance
        Where jobs run. The pipeline starts it, and closes it in the end.
    owner : JobOwner
        Told in the completion thread that a job was submitted, and how it ended.
    max_active_jobs : int or None
        Bound on the jobs inside the instance at any time; the rest wait here. None chooses one by
        the instance's size.
    name : str
        Names the threads.
    runtime : Runtime or None
        Served in the completion thread, together with the channel to the workers.
    """

    def __init__(
        self,
        instance: Instance,
        owner: JobOwner[JobT],
        *,
        max_active_jobs: int | None = None,
        name: str = "flux-bulk",
        runtime: Runtime | None = None,
    ) -> None:
        if max_active_jobs is not None and max_active_jobs < 1:
            raise ValueError(f"max_active_jobs must be at least 1, or None to choose; not {max_active_jobs}")
        self._instance = instance
        self._owner = owner
        self._lock = threading.Lock()
        self._none_left = threading.Condition(self._lock)
        self._jobs: set[JobT] = set()
        self._closed = False
        self._started = False
        self._pid = os.getpid()
        self._runtime = runtime
        self._error: InstanceLost | None = None
        self._loop = CompletionLoop[JobT](
            instance.completion,
            runtime=runtime,
            released=lambda count: self._submitter.release(count),
            resized=lambda capacity: self._submitter.resize(capacity),
            submitted=self._job_submitted,
            ended=self._ended,
            lost=self._lost,
        )
        self._submitter = Submitter[JobT](
            instance.connect,
            opened=self._loop.set_capacity,
            accepted=self._loop.accepted,
            dropped=self._loop.dropped,
            lost=self._loop.lost,
            max_active_jobs=max_active_jobs,
        )
        self._threads = [
            threading.Thread(target=self._loop.run, name=f"{name}-completion", daemon=True),
            threading.Thread(target=self._submitter.run, name=f"{name}-submitter", daemon=True),
        ]

    def start(self) -> None:
        """Start the instance and the threads; a second call does nothing.

        Raises
        ------
        InstanceUnavailable
            If the instance can be neither reached nor started.
        """
        with self._lock:
            if self._started or self._closed:
                return
            self._started = True
        try:
            self._instance.start()
        except BaseException:
            self.close()
            raise
        logger.info("running jobs on %s", self._instance.description)
        for thread in self._threads:
            thread.start()

    def submit(self, job: JobT, request: JobRequest) -> None:
        """Enqueue a job; never blocks. `request` is dropped as soon as the instance has it.

        Raises
        ------
        ExecutorClosed
            After `close`.
        InstanceLost
            If the instance is gone.
        """
        with self._lock:
            if self._error is not None:
                raise InstanceLost(str(self._error))
            if self._closed:
                raise ExecutorClosed("no jobs can be submitted after shutdown")
            job.advance(JobState.QUEUED)
            self._jobs.add(job)
            self._submitter.put(job, request)

    def cancel(self, job: JobT, reason: str) -> None:
        """Cancel a job: one that waits here is dropped, one inside the instance is cancelled there."""
        self._submitter.cancel(job, reason)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` in the completion thread."""
        self._loop.call_soon(function)

    def wake(self) -> None:
        """Give the runtime a turn soon."""
        self._loop.wake()

    def output(self, job: JobT) -> tuple[str, str]:
        """Standard output and error that the instance kept of a job; see Connection.output."""
        if job.job_id is None:
            return "", ""
        connection = self._instance.connect()
        try:
            return connection.output(job.job_id)
        finally:
            connection.close()

    @property
    def description(self) -> str:
        """One line about the instance."""
        return self._instance.description

    @property
    def max_active_jobs(self) -> int | None:
        """Bound on the jobs inside the instance; None until it is known."""
        return self._submitter.max_active_jobs

    @property
    def waiting_jobs(self) -> int:
        """Jobs that wait on our side."""
        return self._submitter.backlog

    @property
    def active_jobs(self) -> int:
        """Jobs inside the instance."""
        return self._submitter.active

    def close_with(self, owner: object, *, grace: float = 0.0) -> None:
        """Close when `owner` is garbage, and at the exit of the interpreter; see `close`."""
        weakref.finalize(owner, self.close, grace=grace)

    def close(self, *, grace: float = 0.0, timeout: float = CLOSE_TIMEOUT) -> None:
        """Cancel what is outstanding, end the threads, close the instance. Twice is fine.

        In one of the pipeline's own threads, so in a callback, it returns at once and is done soon.

        Parameters
        ----------
        grace : float
            Seconds that jobs get to end by themselves before they are cancelled.
        timeout : float
            Seconds that cancelled jobs get to end; what has not ended then is given up, and logged.
        """
        if os.getpid() != self._pid:
            return  # a fork of the process that it belongs to
        if threading.current_thread() in self._threads:
            threading.Thread(
                target=self.close, kwargs={"grace": grace, "timeout": timeout}, name="flux-bulk-close"
            ).start()
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._threads[0].ident is not None:
            if self._runtime is not None:
                self._loop.call_soon(self._runtime.close)
            self._end_jobs(grace, timeout)
            for job in self._submitter.close():
                self._loop.dropped(job, "shutdown")
            self._threads[1].join()
            self._loop.stop()
            self._threads[0].join()
        self._give_up(canceled("shutdown: the end of the job was not waited for"))
        if self._runtime is not None:
            self._runtime.close()
        self._instance.close()

    def _end_jobs(self, grace: float, timeout: float) -> None:
        self._wait_until_none_left(grace)
        with self._lock:
            outstanding = list(self._jobs)
        for job in outstanding:
            self._submitter.cancel(job, "shutdown")
        if outstanding:
            self._wait_until_none_left(timeout)

    def _wait_until_none_left(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        with self._none_left:
            while self._jobs and self._error is None:
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._none_left.wait(left)

    # -- in the completion thread ---------------------------------------------------------------

    def _job_submitted(self, job: JobT) -> None:
        if job.job_id is not None:
            job.name = self._instance.job_name(job.job_id)
        tell(self._owner.job_submitted, job)

    def _ended(self, job: JobT, result: JobResult) -> None:
        with self._none_left:
            self._jobs.discard(job)
            if not self._jobs:
                self._none_left.notify_all()
        self._end(job, result)

    def _end(self, job: JobT, result: JobResult) -> None:
        job.advance(JobState.ENDED)
        job.t_end = time.time()
        job.result = result
        tell(self._owner.job_ended, job, result)

    def _lost(self, error: InstanceLost) -> None:
        with self._none_left:
            self._error = error
            self._none_left.notify_all()
        self._submitter.close()
        self._give_up(JobResult(JobStatus.FAILED, exception=EndCause.INSTANCE_LOST.value, note=str(error)))

    def _give_up(self, result: JobResult) -> None:
        with self._lock:
            left = list(self._jobs)
            self._jobs.clear()
        if left:
            logger.warning("%d job(s) ended without word of them: %s", len(left), result.note)
        for job in left:
            if not job.ended:
                self._end(job, result)
