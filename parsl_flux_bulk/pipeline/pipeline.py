"""The pipeline of one instance: jobs in, results out.

::

    submit ──> Submitter (thread) ──> instance ──> CompletionLoop (thread) ──> JobOwner, Runtime
                    ^                                      |
                    └───────────── release ────────────────┘

The pipeline owns the instance and both threads, and knows every job that has not ended. When the instance is
lost or the pipeline is closed, the pipeline ends the jobs that are left. The threads hold the pipeline's
state, never the executor or the BulkSubmitter that uses it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic

from parsl_flux_bulk.errors import ExecutorClosed, InstanceLost, OutputUnavailable
from parsl_flux_bulk.instances.base import (
    Capacity,
    Completion,
    Connection,
    EndCause,
    Instance,
    JobId,
    JobRequest,
    JobResult,
    JobStatus,
    KnowsNodes,
    Output,
    Position,
    Refusal,
)
from parsl_flux_bulk.instances.call_queue import CallQueue
from parsl_flux_bulk.instances.output_parts import read_all
from parsl_flux_bulk.pipeline.callbacks import call_logged
from parsl_flux_bulk.pipeline.completion import CompletionLoop, OpenRuntime, Runtime
from parsl_flux_bulk.pipeline.exit_status_to_error import canceled
from parsl_flux_bulk.pipeline.job import JobOwner, JobState, JobT
from parsl_flux_bulk.pipeline.submitter import Submitter

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 15.0
"""Seconds that canceled jobs may take to end when a pipeline is closed."""

THREAD_TIMEOUT = 5.0
"""Seconds that a thread may take to end; an instance that does not answer must not block `close`."""


def _no_runtime(completion: Completion, capacity: Capacity) -> Runtime:
    return Runtime()


def _ignore(error: Exception) -> None:
    pass


class Pipeline(Generic[JobT]):
    """Submit jobs to one instance, and tell their owners how they end.

    Parameters
    ----------
    instance : Instance
        Where jobs run. The pipeline starts it, and closes it in the end.
    max_active_jobs : int or None
        Bound on the jobs inside the instance at any time; the others wait in this process. None means a bound
        that depends on the instance's size.
    name : str
        Prefix of the threads' names.

    Raises
    ------
    ValueError
        For a `max_active_jobs` below 1.
    """

    def __init__(
        self, instance: Instance, *, max_active_jobs: int | None = None, name: str = "flux-bulk"
    ) -> None:
        if max_active_jobs is not None and max_active_jobs < 1:
            raise ValueError(f"max_active_jobs must be at least 1 or None, not {max_active_jobs}")
        self._instance = instance
        self._name = name
        self._lock = threading.Lock()
        self._none_left = threading.Condition(self._lock)
        self._jobs: dict[JobT, JobOwner[JobT]] = {}
        self._closed = False
        self._started = False
        self._threads: list[threading.Thread] = []
        self._finalizer: weakref.finalize[..., object] | None = None
        self._pid = os.getpid()
        self._error: InstanceLost | None = None
        self._fail: Callable[[Exception], None] = _ignore
        self._capacity: Future[Capacity] = Future()
        self._calls: CallQueue[CompletionLoop[JobT]] = CallQueue()
        self._submitter = Submitter[JobT](
            instance.connect,
            opened=self._capacity.set_result,
            answered=self._answered,
            dropped=self._dropped,
            lost=self._submission_lost,
            max_active_jobs=max_active_jobs,
        )

    def start(
        self, open_runtime: OpenRuntime = _no_runtime, *, fail: Callable[[Exception], None] = _ignore
    ) -> None:
        """Start the instance and the threads; a second call does nothing.

        Parameters
        ----------
        open_runtime : callable
            Called in the completion thread with its completion and the instance's capacity; returns what the
            thread serves besides jobs.
        fail : callable
            Called when no more tasks can run: in the completion thread with InstanceLost, or by `close` with
            ExecutorClosed. The runtime has one more turn after that.

        Raises
        ------
        InstanceUnavailable
            If the instance can be neither reached nor started.
        """
        with self._lock:
            if self._started or self._closed:
                return
            self._started = True
            self._fail = fail
        try:
            self._instance.start()
        except BaseException:
            self.close()
            raise
        logger.info("running jobs on %s", self._instance.description)
        self._threads = [
            threading.Thread(
                target=self._complete, args=[open_runtime], name=f"{self._name}-completion", daemon=True
            ),
            threading.Thread(target=self._submitter.run, name=f"{self._name}-submitter", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: JobT, request: JobRequest, owner: JobOwner[JobT]) -> None:
        """Enqueue a job; never blocks. The request is released once the instance has the job.

        Parameters
        ----------
        owner : JobOwner
            Told in the completion thread that the job was submitted, and how it ended.

        Raises
        ------
        ExecutorClosed
            After `close`, and in a fork of the process that started the pipeline.
        InstanceLost
            If the instance is lost.
        """
        self.refuse_fork()
        with self._lock:
            if self._error is not None:
                raise InstanceLost(str(self._error))
            if self._closed:
                raise ExecutorClosed("no jobs can be submitted after shutdown")
            job.advance(JobState.QUEUED)
            self._jobs[job] = owner
            self._submitter.put(job, request)

    @property
    def forked(self) -> bool:
        """Whether this is a fork of the process that made the pipeline, whose threads a fork lacks."""
        return os.getpid() != self._pid

    def refuse_fork(self) -> None:
        """Raise ExecutorClosed in a fork of the process that made the pipeline."""
        if self.forked:
            raise ExecutorClosed(
                f"process {os.getpid()} is a fork of process {self._pid}, which started {self._name!r}, and "
                "cannot use it, because a fork has none of the threads: submit in the process that started "
                "it, or start another one in this process"
            )

    def cancel(self, job: JobT, reason: str) -> None:
        """Cancel a job: drop one that waits in this process, cancel one that is inside the instance."""
        self.refuse_fork()
        self._submitter.cancel(job, reason)

    def wake(self) -> None:
        """Give the runtime a turn soon; any thread may."""
        self._calls.wake()

    def connect(self) -> Connection:
        """Open a connection for the calling thread, in addition to that of the submission thread."""
        return self._instance.connect()

    def output(self, job: JobT) -> tuple[str, str]:
        """Return the standard output and error of a job that the instance kept.

        Raises
        ------
        OutputUnavailable
            The job still waits in this process.
        """
        if job.job_id is None:
            if job.ended:
                return "", ""  # it never got to the instance, and never ran
            raise OutputUnavailable("the job has no output yet: it has not been submitted. Wait for its end")
        with contextlib.closing(self.connect()) as connection:
            return read_all(connection, job.job_id)

    def output_part(self, job: JobT, start: Position, connection: Connection | None = None) -> Output:
        """Return the next part of the output of a job that the instance kept; see Connection.output.

        Parameters
        ----------
        connection : Connection or None
            A connection of the calling thread; None opens one for this call.
        """
        if job.job_id is None:
            return Output("", "", start)
        if connection is not None:
            return connection.output(job.job_id, start)
        with contextlib.closing(self.connect()) as own:
            return own.output(job.job_id, start)

    @property
    def description(self) -> str:
        """One line about the instance."""
        return self._instance.description

    @property
    def max_active_jobs(self) -> int:
        """Bound on the jobs inside the instance."""
        return self._submitter.max_active_jobs

    @property
    def waiting_jobs(self) -> int:
        """Number of jobs that wait in this process."""
        return self._submitter.waiting

    @property
    def active_jobs(self) -> int:
        """Number of jobs inside the instance."""
        return self._submitter.active

    # -- the end ------------------------------------------------------------------------------------

    def close_with(self, user: object, *, grace: float = 0.0) -> None:
        """Close when `user` is garbage, and at the exit of the interpreter; see `close`."""
        self._finalizer = weakref.finalize(user, self.close, grace=grace)

    def close(self, *, grace: float = 0.0, timeout: float = CLOSE_TIMEOUT) -> None:
        """Cancel the jobs that have not ended, end the threads, and close the instance.

        A second call does nothing. In one of the pipeline's own threads, that is in a callback, `close`
        returns at once and another thread does the work.

        Parameters
        ----------
        grace : float
            Seconds that jobs get to end by themselves before they are canceled.
        timeout : float
            Seconds that canceled jobs get to end; jobs that take longer are abandoned, and logged.
        """
        if self.forked:
            return  # the pipeline belongs to the parent of this process
        if threading.current_thread() in self._threads:
            threading.Thread(
                target=self.close, kwargs={"grace": grace, "timeout": timeout}, name="flux-bulk-close"
            ).start()
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._fail(ExecutorClosed("the executor was shut down"))
        if self._threads:
            self._end_jobs(grace, timeout)
            for job in self._submitter.close():
                self._dropped(job, "shutdown")
            completion, submission = self._threads
            submission.join(THREAD_TIMEOUT)
            self._calls.put(CompletionLoop.stop)
            completion.join(THREAD_TIMEOUT)
        self._abandon(canceled("shutdown: the end of the job was not waited for"))
        self._instance.close()
        for thread in self._threads:
            # The end of an owned instance also ends a request that it did not answer.
            thread.join(THREAD_TIMEOUT)
            if thread.is_alive():
                logger.warning("thread abandoned name=%s: the instance does not answer", thread.name)
        if self._finalizer is not None:
            self._finalizer.detach()  # it would keep the pipeline, and all that the pipeline refers to

    def _end_jobs(self, grace: float, timeout: float) -> None:
        self._wait_until_none_left(grace)
        with self._lock:
            left = list(self._jobs)
        for job in left:
            self._submitter.cancel(job, "shutdown")
        if left:
            self._wait_until_none_left(timeout)

    def _wait_until_none_left(self, timeout: float) -> None:
        with self._none_left:
            self._none_left.wait_for(lambda: not self._jobs or self._error is not None, timeout)

    # -- in the submission thread -------------------------------------------------------------------

    def _answered(self, answers: list[tuple[JobT, JobId | Refusal]], submitted_at: float) -> None:
        self._calls.put(lambda loop: loop.take_answers(answers, submitted_at))

    def _dropped(self, job: JobT, reason: str) -> None:
        self._calls.put(lambda loop: loop.drop(job, reason))

    def _submission_lost(self, error: InstanceLost) -> None:
        def fail(_: CompletionLoop[JobT]) -> None:
            raise error

        if self._capacity.done():
            self._calls.put(fail)
        else:
            self._capacity.set_exception(error)

    # -- in the completion thread -------------------------------------------------------------------

    def _complete(self, open_runtime: OpenRuntime) -> None:
        runtime = Runtime()
        with contextlib.ExitStack() as stack:
            try:
                completion = stack.enter_context(contextlib.closing(self._instance.completion()))
                runtime = open_runtime(completion, self._capacity.result())
                CompletionLoop[JobT](
                    completion,
                    self._calls,
                    runtime,
                    released=self._submitter.release,
                    resized=self._submitter.resize,
                    submitted=self._job_submitted,
                    ended=self._job_ended,
                ).run()
                return
            except InstanceLost as error:
                lost = error
            except BaseException as error:
                logger.exception("completion thread failed")
                lost = InstanceLost(f"the completion thread failed: {error!r}")
            with runtime.lock:
                self._instance_lost(lost)
                runtime.turn()

    def _job_submitted(self, job: JobT) -> None:
        if job.job_id is not None:
            job.name = self._instance.job_name(job.job_id)
            if isinstance(self._instance, KnowsNodes):
                job.node = self._instance.job_node(job.job_id)
        owner = self._jobs.get(job)
        if owner is not None:
            call_logged(owner.job_submitted, job)

    def _job_ended(self, job: JobT, result: JobResult) -> None:
        with self._none_left:
            owner = self._jobs.pop(job)
            if not self._jobs:
                self._none_left.notify_all()
        self._end(job, result, owner)

    def _end(self, job: JobT, result: JobResult, owner: JobOwner[JobT]) -> None:
        job.advance(JobState.ENDED)
        job.t_end = time.time()
        job.result = result
        call_logged(owner.job_ended, job, result)

    def _instance_lost(self, error: InstanceLost) -> None:
        logger.error("%s", error)
        with self._none_left:
            self._error = error
            self._none_left.notify_all()
        self._submitter.close()
        self._abandon(JobResult(JobStatus.FAILED, exception=EndCause.INSTANCE_LOST.value, note=str(error)))
        self._fail(error)

    def _abandon(self, result: JobResult) -> None:
        with self._lock:
            left = dict(self._jobs)
            self._jobs.clear()
        if left:
            logger.warning("jobs abandoned without a result count=%d: %s", len(left), result.note)
        for job, owner in left.items():
            if not job.ended:
                self._end(job, result, owner)
