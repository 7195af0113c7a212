"""A member of a federation: one instance, its state, and the jobs that were placed in it.

::

    STARTING ──> READY ──> DRAINING        STARTING: its channels are being opened
        └──────────┴──────────┴──> REMOVED

READY members get jobs; DRAINING ones finish theirs. Any other transition raises IllegalTransition.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from parsl_flux_bulk.instances.base import Capacity, JobId
from parsl_flux_bulk.instances.events import OWN_ID, SCOPE_BITS, MemberInstance
from parsl_flux_bulk.jobspec.jobspec import Demand
from parsl_flux_bulk.protocol.states import State, Stateful


class MemberState(State):
    """See the module."""

    STARTING = "starting", "ready", "removed"
    READY = "ready", "draining", "removed"
    DRAINING = "draining", "removed"
    REMOVED = ("removed",)


class Member(Stateful):
    """One of the instances.

    Attributes
    ----------
    number : int
        Scope of the member's job ids; see :mod:`.instances.events`.
    name : str
    instance : Instance or PushInstance
    capacity : Capacity
    ends_at : float or None
        When its allocation ends, in ``time.time()`` seconds.
    environment : mapping
        Defaults for the environment of its jobs.
    state : MemberState
    removed_because : str
        Set with the state REMOVED.
    jobs : dict of int to Demand
        Jobs that have not ended, by scoped id.
    cores_used : int
        Cores of `jobs`, and of jobs that are being submitted.
    idle_since : float
        In ``time.monotonic()`` seconds; valid without jobs.
    """

    def __init__(
        self,
        number: int,
        name: str,
        instance: MemberInstance,
        capacity: Capacity,
        ends_at: float | None,
        environment: Mapping[str, str],
    ) -> None:
        self.number = number
        self.name = name
        self.instance = instance
        self.capacity = capacity
        self.ends_at = ends_at
        self._lifetime = None if ends_at is None else ends_at - time.time()
        self.environment = environment
        self.state = MemberState.STARTING
        self.removed_because = ""
        self.jobs: dict[JobId, Demand] = {}
        self.cores_used = 0
        self.idle_since = time.monotonic()

    def __repr__(self) -> str:
        return f"<Member {self.name} {self.state}>"

    def has_time(self, demand: Demand) -> bool:
        """Whether such a job would end before the allocation does."""
        return self.ends_at is None or demand.duration <= self.ends_at - time.time()

    def had_time(self, demand: Demand) -> bool:
        """Whether such a job would have ended in time when the allocation was new."""
        return self._lifetime is None or demand.duration <= self._lifetime

    def has_room(self, demand: Demand) -> bool:
        """Whether such a job would fit the empty member."""
        capacity = self.capacity
        return (
            demand.nodes <= capacity.nodes
            and self.cores_of(demand) <= capacity.cores
            and demand.gpus <= capacity.gpus
        )

    @property
    def free_cores(self) -> int:
        """Cores that no job of the federation has; negative while jobs wait."""
        return self.capacity.cores - self.cores_used

    def cores_of(self, demand: Demand) -> int:
        """Cores that such a job occupies here."""
        if not demand.exclusive or not self.capacity.nodes:
            return demand.cores
        return max(demand.cores, demand.nodes * (self.capacity.cores // self.capacity.nodes))

    def has_job(self, job_id: JobId) -> bool:
        """Whether a scoped job id is one of this member's."""
        return job_id >> SCOPE_BITS == self.number

    def remove_job(self, job_id: JobId) -> None:
        """Free the cores of a job that ended."""
        demand = self.jobs.pop(job_id, None)
        if demand is not None:
            self.cores_used -= self.cores_of(demand)
            if not self.jobs:
                self.idle_since = time.monotonic()


def own_id(job_id: JobId) -> JobId:
    """Return the id that a job of the federation has in its member."""
    return job_id & OWN_ID
