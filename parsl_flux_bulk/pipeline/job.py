"""The record of one job, from its creation to its end.

::

    CREATED ──submit──> QUEUED ──accepted──> SUBMITTED ──> ENDED
                           └──refused, dropped, given up──────^

Whoever submits jobs subclasses :class:`Job` for what else belongs to a job: the record is the context that
the pipeline carries through, and hands back to its :class:`JobOwner`.
"""

from __future__ import annotations

import enum
from typing import Protocol, TypeVar

from parsl_flux_bulk.instances.base import JobId, JobResult


class JobState(enum.Enum):
    """How far a job is on its way through the pipeline."""

    CREATED = "created"
    QUEUED = "queued"
    SUBMITTED = "submitted"
    ENDED = "ended"


_ALLOWED = {
    JobState.CREATED: {JobState.QUEUED, JobState.ENDED},
    JobState.QUEUED: {JobState.SUBMITTED, JobState.ENDED},
    JobState.SUBMITTED: {JobState.ENDED},
    JobState.ENDED: frozenset[JobState](),
}


class Job:
    """One job.

    Attributes
    ----------
    pipeline_state : JobState
    job_id : int or None
        Known once the instance accepted the job.
    name : str
        The id as people write it; "" until it is known.
    dropped : bool
        Canceled before it was submitted. Written by the submission thread only.
    result : JobResult or None
        How it ended.
    t_submit, t_end : float or None
        Seconds since the epoch: when the instance accepted it, when its end was reported.
    """

    __slots__ = (
        "__weakref__",
        "dropped",
        "job_id",
        "name",
        "pipeline_state",
        "result",
        "t_end",
        "t_submit",
    )

    def __init__(self) -> None:
        self.pipeline_state = JobState.CREATED
        self.job_id: JobId | None = None
        self.name = ""
        self.dropped = False
        self.result: JobResult | None = None
        self.t_submit: float | None = None
        self.t_end: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.pipeline_state is JobState.ENDED

    def advance(self, state: JobState) -> None:
        """Enter a state.

        Raises
        ------
        RuntimeError
            If the job's present state does not lead to it.
        """
        if state not in _ALLOWED[self.pipeline_state]:
            raise RuntimeError(
                f"job {self.name or self.job_id} cannot go from {self.pipeline_state} to {state}"
            )
        self.pipeline_state = state


JobT = TypeVar("JobT", bound=Job)
JobT_contra = TypeVar("JobT_contra", bound=Job, contravariant=True)


class JobOwner(Protocol[JobT_contra]):
    """Hears of all jobs of one pipeline, in the completion thread."""

    def job_submitted(self, job: JobT_contra) -> None:
        """The instance accepted the job: `job_id` and `name` are known."""

    def job_ended(self, job: JobT_contra, result: JobResult) -> None:
        """The job ended. Called exactly once for every job, also for one that was refused."""
