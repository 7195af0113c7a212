"""The future of one job."""

from __future__ import annotations

from parsl_flux_bulk.instances.base import START, Connection, JobResult, Output, Position
from parsl_flux_bulk.instances.events import OWN_ID
from parsl_flux_bulk.pipeline.callbacks import CallbackFuture
from parsl_flux_bulk.pipeline.job import Job
from parsl_flux_bulk.pipeline.pipeline import Pipeline


class JobFuture(CallbackFuture[JobResult]):
    """The :class:`concurrent.futures.Future` of one job.

    `result` returns a :class:`JobResult` if the job ended with exit status 0. Otherwise `result` raises
    :class:`JobFailed`, :class:`JobRefused`, :class:`JobCanceled` or :class:`JobTimeout`, whose attribute
    ``result`` is the JobResult; or :class:`InstanceLost`; or :class:`BlockLost`, if the node job that
    ran the job was lost.

    Attributes
    ----------
    label : str
        Name of the job in messages: by default, the name of its file, or its command.
    """

    def __init__(self, pipeline: Pipeline[Job], job: Job, label: str) -> None:
        super().__init__()
        self.label = label
        self._pipeline = pipeline
        self._job = job

    @property
    def job_id(self) -> int | None:
        """The job id as a number; None until the instance has accepted the job."""
        job_id = self._job.job_id
        return None if job_id is None else job_id & OWN_ID

    @property
    def job_name(self) -> str:
        """The job id as people write it (``ƒ2EzUaXo``); "" until the instance has accepted the job."""
        return self._job.name

    @property
    def node(self) -> str:
        """Host that the job is on: a packed one, or one of the embedded instance; "" for others."""
        return self._job.node

    @property
    def t_submit(self) -> float | None:
        """When the job was sent to the instance, in seconds since the epoch; None until it was accepted."""
        return self._job.t_submit

    @property
    def t_end(self) -> float | None:
        """When the end of the job was reported, in seconds since the epoch."""
        return self._job.t_end

    @property
    def job_result(self) -> JobResult | None:
        """How the job ended, successfully or not; None until it has ended."""
        return self._job.result

    def stdout(self) -> str:
        """Return the standard output that the instance kept; "" if the jobspec redirects it to a file."""
        return self._pipeline.output(self._job)[0]

    def stderr(self) -> str:
        """Return the standard error that the instance kept; "" if the jobspec redirects it to a file."""
        return self._pipeline.output(self._job)[1]

    def output_part(self, start: Position = START, connection: Connection | None = None) -> Output:
        """Return the next part of the output that the instance kept: empty if there is no more (yet).

        Parameters
        ----------
        start : (int, int)
            Attribute `end` of the part before.
        connection : Connection or None
            What :meth:`BulkSubmitter.connect` returned to this thread, if many parts are read.
        """
        return self._pipeline.output_part(self._job, start, connection)

    def cancel(self, reason: str = "canceled by the user") -> bool:
        """Request that the job be canceled, whether it waits or runs.

        The future ends when the job has ended: with JobCanceled, or with the result if the job ended first.

        Returns
        -------
        bool
            False if the job has ended already.
        """
        if self.done():
            return False
        self._pipeline.cancel(self._job, reason)
        return True

    def __repr__(self) -> str:
        result = self._job.result
        state = result.status.value if result else "active" if self.job_id is not None else "waiting"
        return f"<JobFuture {self.job_name or '(no id yet)'} {self.label!r} {state}>"
