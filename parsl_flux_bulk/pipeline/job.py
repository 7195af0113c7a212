"""The record of one job, from its creation to its end.

::

    CREATED ──submit──> QUEUED ──accepted──> SUBMITTED ──> ENDED
                           └──refused, dropped, abandoned─────^

The executor and the BulkSubmitter subclass :class:`Job` to add their own attributes. The pipeline passes the
record back to the job's :class:`JobOwner`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from parsl_flux_bulk.instances.base import JobId, JobResult
from parsl_flux_bulk.protocol.states import IllegalTransition, State


class JobState(State):
    """Where a job is on its way through the pipeline."""

    CREATED = "created", "queued", "ended"
    QUEUED = "queued", "submitted", "ended"
    SUBMITTED = "submitted", "ended"
    ENDED = ("ended",)


class Job:
    """One job.

    Attributes
    ----------
    pipeline_state : JobState
    job_id : int or None
        None until the instance has accepted the job.
    name : str
        The job id as people write it; "" until it is known.
    node : str
        Host that the job is on, if the instance knows that of every job; or "".
    dropped : bool
        Canceled before it was submitted. Written by the submission thread only.
    result : JobResult or None
        None until the job has ended.
    t_submit, t_end : float or None
        Seconds since the epoch: when the job was sent to the instance, and when its end was reported.
    """

    __slots__ = (
        "__weakref__",
        "dropped",
        "job_id",
        "name",
        "node",
        "pipeline_state",
        "result",
        "t_end",
        "t_submit",
    )

    def __init__(self) -> None:
        self.pipeline_state = JobState.CREATED
        self.job_id: JobId | None = None
        self.name = ""
        self.node = ""
        self.dropped = False
        self.result: JobResult | None = None
        self.t_submit: float | None = None
        self.t_end: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.pipeline_state is JobState.ENDED

    def advance(self, state: JobState) -> None:
        """Enter a state; raise IllegalTransition if the present state does not lead to it."""
        if state not in self.pipeline_state.successors:
            raise IllegalTransition(self, self.pipeline_state, state)
        self.pipeline_state = state


JobT = TypeVar("JobT", bound=Job)
JobT_contra = TypeVar("JobT_contra", bound=Job, contravariant=True)


class JobOwner(Protocol[JobT_contra]):
    """What is told about the jobs that it submitted, in the completion thread."""

    def job_submitted(self, job: JobT_contra) -> None:
        """Take note that the instance accepted the job: `job_id` and `name` are known."""

    def job_ended(self, job: JobT_contra, result: JobResult) -> None:
        """Take note that the job ended. Called exactly once for every job, also for a refused one."""
