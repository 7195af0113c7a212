"""What an executor tells about its tasks, workers and jobs."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from parsl.dataflow.futures import AppFuture

from parsl_flux_bulk.executor.runtime import StatusReport, TaskPipeline
from parsl_flux_bulk.executor.submission_queue import SubmissionQueue, TaskFuture
from parsl_flux_bulk.scheduler.story import Record


class Inspection:
    """Answer questions about an executor; base class of FluxBulkExecutor."""

    _queue: SubmissionQueue | None
    _pipeline: TaskPipeline | None

    @property
    def queue(self) -> SubmissionQueue | None:
        """The tasks that have not ended; None before `start` and after `shutdown`."""
        return self._queue

    def status_report(self) -> StatusReport | None:
        """Return counts of tasks by state, workers and cores by shape, and jobs; None until started."""
        queue, pipeline = self._queue, self._pipeline
        if queue is None or pipeline is None or queue.scheduler is None:
            return None
        return StatusReport.of(queue.scheduler, pipeline)

    def story(self, future: Future[Any]) -> list[Record]:
        """Return what the scheduler decided about a task, and why: which task waits for what, for example.

        ::

            >>> print(*executor.story(app_future), sep="\\n")
            4711.204 submit job=1 cores=1 gpus=0: 2 cores, 0 GPUs
            4711.290 connect job=1 cores=1 gpus=0: manager 0 on node7
            4713.841 now task=12: one of 3 tasks that wait for a worker: 2 are busy, 0 idle, 0 starting

        Times are seconds of ``time.monotonic()``. The last record of a task that has not ended says where
        the task is. Only the latest decisions are kept, some thousands. Any thread may call this method.

        Parameters
        ----------
        future : Future
            Of an app, or of `submit`.

        Raises
        ------
        ValueError
            If the task was not submitted to this kind of executor, or not yet.
        """
        if isinstance(future, AppFuture):
            future = future.task_record["exec_fu"] or future
        if not isinstance(future, TaskFuture):
            raise ValueError(
                f"no story of {future!r}: expected the future of a task that was submitted to a "
                "FluxBulkExecutor; an app's task is submitted when its dependencies have ended"
            )
        return future.story()
