"""The members of a federation: what they have, which jobs they run, and whether one more would fit."""

from __future__ import annotations

import time
from collections.abc import Mapping

from parsl_flux_bulk.instances.base import Capacity, EndCause, Instance, JobId, JobResult, JobStatus
from parsl_flux_bulk.jobspec.jobspec import Demand

MEMBER_SHIFT = 64
"""A member's own ids have 64 bits at most."""


class Member:
    """One of the instances.

    Attributes
    ----------
    name : str
    instance : Instance
    capacity : Capacity
    ends_at : float or None
        When its allocation ends, in ``time.time()`` seconds.
    lifetime : float or None
        Seconds that were left of its allocation when it came; about what another one would have.
    environment : mapping
        Of its jobs, below what each jobspec says.
    jobs : dict of int to Demand
        By its own job ids, those that have not ended.
    idle_since : float
        In ``time.monotonic()`` seconds; counts if it has no jobs.
    closing : bool
        It is given no more jobs.
    """

    def __init__(
        self,
        number: int,
        name: str,
        instance: Instance,
        capacity: Capacity,
        ends_at: float | None,
        environment: Mapping[str, str],
    ) -> None:
        self.number = number
        self.name = name
        self.instance = instance
        self.capacity = capacity
        self.ends_at = ends_at
        self.lifetime = None if ends_at is None else ends_at - time.time()
        self.environment = environment
        self.jobs: dict[JobId, Demand] = {}
        self.cores_used = 0
        self.idle_since = time.monotonic()
        self.closing = False
        self.lost = ""

    def has_time(self, demand: Demand) -> bool:
        """Whether such a job would end before it does."""
        return self.ends_at is None or demand.duration <= self.ends_at - time.time()

    def had_time(self, demand: Demand) -> bool:
        """Whether such a job would have, when it was new."""
        return self.lifetime is None or demand.duration <= self.lifetime

    def has_room(self, demand: Demand) -> bool:
        """Whether it could run such a job, were it empty."""
        capacity = self.capacity
        return (
            demand.nodes <= capacity.nodes
            and self.cores_of(demand) <= capacity.cores
            and demand.gpus <= capacity.gpus
        )

    @property
    def free_cores(self) -> int:
        """Cores that our jobs have left; negative where some wait."""
        return self.capacity.cores - self.cores_used

    def cores_of(self, demand: Demand) -> int:
        """Cores that such a job takes here."""
        if not demand.exclusive or not self.capacity.nodes:
            return demand.cores
        return max(demand.cores, demand.nodes * (self.capacity.cores // self.capacity.nodes))

    def has_job(self, job_id: JobId) -> bool:
        """Whether a job of the federation is here."""
        return job_id >> MEMBER_SHIFT == self.number

    def remove_job(self, job_id: JobId) -> None:
        """A job ended."""
        demand = self.jobs.pop(job_id, None)
        if demand is not None:
            self.cores_used -= self.cores_of(demand)
            if not self.jobs:
                self.idle_since = time.monotonic()


def lost_result(why: str, cause: EndCause = EndCause.BLOCK_LOST, *, started: bool = True) -> JobResult:
    """How a job ends whose member is gone, or that has none to go to."""
    return JobResult(JobStatus.FAILED, exception=cause.value, note=why, started=started)


def own_id(job_id: JobId) -> JobId:
    """The id that a job of the federation has in its member."""
    return job_id & ((1 << MEMBER_SHIFT) - 1)


def no_room(demand: Demand, members: list[Member]) -> str:
    """Say what a job asks for that no member has."""
    largest = max(members, key=lambda m: m.capacity.cores).capacity
    wanted = f"{demand.nodes} node(s), {demand.cores} core(s), {demand.gpus} GPU(s)"
    if demand.duration:
        wanted += f" for {demand.duration:g} s"
    return (
        f"unsatisfiable request: no instance has {wanted}; the largest has {largest.nodes} node(s), "
        f"{largest.cores} core(s), {largest.gpus} GPU(s)"
    )
