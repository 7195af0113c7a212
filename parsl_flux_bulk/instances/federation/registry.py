"""The registry of a federation's members: which there are, and which jobs each has.

Every change of a member's state happens here, under one lock, and is reported to the completions.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping

from parsl_flux_bulk.instances.base import (
    Capacity,
    CapacityChanged,
    EndCause,
    JobId,
    JobResult,
    JobStatus,
    Refusal,
)
from parsl_flux_bulk.instances.events import SCOPE_BITS, MemberInstance
from parsl_flux_bulk.instances.federation.completion import FederationCompletion
from parsl_flux_bulk.instances.federation.members import Member, MemberState
from parsl_flux_bulk.instances.federation.placement import Placement, choose, no_room
from parsl_flux_bulk.jobspec.jobspec import Demand

logger = logging.getLogger(__name__)


class MemberRegistry:
    """Members by number; every method may be called by any thread.

    Parameters
    ----------
    policy : Placement
    on_drained : callable
        Called, under the lock, with a DRAINING member that has no jobs left; perhaps more than once.
    on_idle : callable
        Called, under the lock, with a member whose last job has ended.
    """

    def __init__(
        self,
        policy: Placement,
        on_drained: Callable[[Member], None],
        on_idle: Callable[[Member], None] = lambda _: None,
    ) -> None:
        self.policy = policy
        self.lock = threading.RLock()
        self._on_drained = on_drained
        self._on_idle = on_idle
        self._job_ended = threading.Condition(self.lock)
        self._members: dict[int, Member] = {}
        self._completions: dict[str, FederationCompletion] = {}
        self._numbers = itertools.count(1)
        self._unplaced_ids = itertools.count(1)
        self._out_of_time: dict[JobId, int] = {}
        self._changes = 0

    # -- members --------------------------------------------------------------------------------

    @property
    def members(self) -> list[Member]:
        """Members that are not removed."""
        with self.lock:
            return list(self._members.values())

    def member_of(self, job_id: JobId) -> Member | None:
        """Return the member that a job is in; None if it was removed, or the job was never placed."""
        return self._members.get(job_id >> SCOPE_BITS)

    def add(
        self,
        name: str,
        instance: MemberInstance,
        capacity: Capacity,
        ends_at: float | None,
        environment: Mapping[str, str],
    ) -> Member:
        """Add a member, and subscribe all completions to it; it is then READY, or REMOVED if it was lost."""
        with self.lock:
            member = Member(next(self._numbers), name, instance, capacity, ends_at, environment)
            self._members[member.number] = member
            completions = list(self._completions.values())
        for completion in completions:
            completion.open(member)
        with self.lock:
            if member.state is MemberState.STARTING:
                member.move_to(MemberState.READY)
                logger.info("%s ready: %s", self.policy.label(member), instance.description)
                self._announce_capacity()
        return member

    def drain(self, member: Member) -> None:
        """Place no more jobs in a READY member; those that it has continue."""
        with self.lock:
            if member.state is MemberState.READY:
                member.move_to(MemberState.DRAINING)
                self._announce_capacity()
                self._report_drained(member)

    def drain_idle(self, member: Member) -> None:
        """Drain a member, unless it has jobs, or gets one now."""
        with self.lock:
            if not member.cores_used:
                self.drain(member)

    def remove(self, member: Member, why: str) -> None:
        """Remove a member and close its instance; its jobs end as lost."""
        label = self.policy.label(member)
        with self.lock:
            if member.state is MemberState.REMOVED:
                return
            member.move_to(MemberState.REMOVED)
            member.removed_because = why
            del self._members[member.number]
            self.policy.removed(member)
            if member.jobs:
                logger.warning("%s lost jobs=%d: %s", label, len(member.jobs), why)
            member.jobs.clear()
            self._job_ended.notify_all()
            # A relayed block's own error begins with its name.
            result = lost_result(why if why.startswith(label) else f"{label}: {why}")
            sources = [c.member_removed(member, result) for c in self._completions.values()]
            self._announce_capacity()
        for source in filter(None, sources):
            source.close()
        member.instance.close()

    def _remove_lost(self, number: int, why: str) -> None:
        member = self._members.get(number)
        if member is not None:
            self.remove(member, why)

    def _resize(self, number: int, capacity: Capacity) -> None:
        member = self._members.get(number)
        if member is not None and capacity != member.capacity:
            member.capacity = capacity
            self._announce_capacity()

    def wait_empty(self, member: Member, timeout: float) -> bool:
        """Wait until a member has no jobs; return whether it has none."""
        with self._job_ended:
            return self._job_ended.wait_for(lambda: not member.jobs, timeout)

    # -- completions ----------------------------------------------------------------------------

    def open_completion(self) -> FederationCompletion:
        """Return a completion that is subscribed to all members, and to those that are added later."""
        completion = FederationCompletion(
            self.lock,
            job_ended=self._end_job,
            lost=self._remove_lost,
            unplaced=self.unplaced_result,
            resized=self._resize,
            closed=lambda completion: self._completions.pop(completion.key, None),
        )
        with self.lock:
            self._completions[completion.key] = completion
            members = self.members
        for member in members:
            completion.open(member)
        return completion

    def address(self, key: str, member: Member) -> Mapping[str, str]:
        """Return how a member's jobs reach the channel of the completion with this key."""
        completion = self._completions.get(key)
        return completion.address_in(member) if completion else {}

    def _announce_capacity(self) -> None:
        self._changes += 1
        event = CapacityChanged(self.capacity())
        for completion in self._completions.values():
            completion.put([event])

    # -- jobs -----------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """Return the resources of the members that get jobs."""
        return self.policy.capacity(self._ready())

    def place(self, demand: Demand) -> Member | Refusal | JobId:
        """Choose a member for a job, and count the job's cores there.

        Returns
        -------
        Member, Refusal or JobId
            An id without a member if none can run the job now; `unplaced_result` explains it.
        """
        with self.lock:
            self.policy.check()
            ready = self._ready()
            if not ready:
                return next(self._unplaced_ids)
            large = [member for member in ready if member.has_room(demand)]
            fitting = [member for member in large if member.has_time(demand)]
            if not fitting:
                if not any(member.had_time(demand) for member in large):
                    return no_room(demand, ready)
                job_id = next(self._unplaced_ids)
                self._out_of_time[job_id] = self._changes
                return job_id
            member = choose(self.policy.candidates(fitting, demand), demand)
            member.cores_used += member.cores_of(demand)
            return member

    def placed(self, member: Member, demand: Demand, answer: JobId | Refusal | None) -> JobId | Refusal:
        """Record a member's answer to a job that was placed there; None if the member was lost."""
        with self.lock:
            if answer is None:
                return next(self._unplaced_ids)
            if isinstance(answer, Refusal):
                member.cores_used -= member.cores_of(demand)
            else:
                answer |= member.number << SCOPE_BITS
                if member.state is not MemberState.REMOVED:
                    member.jobs[answer] = demand
            self._report_drained(member)
            return answer

    def unplaced_result(self, job_id: JobId) -> JobResult:
        """Return how a job ends that is in no member."""
        if job_id >> SCOPE_BITS:
            return lost_result("its block has ended")
        with self.lock:
            if self._out_of_time.pop(job_id, -1) == self._changes:
                return lost_result("no block has enough time left", EndCause.NO_BLOCK, started=False)
            # The members have changed: another attempt may succeed.
            return lost_result("no block was available", started=False)

    def _end_job(self, job_id: JobId) -> None:
        member = self.member_of(job_id)
        if member is not None:
            member.remove_job(job_id)
            if not member.jobs:
                self._job_ended.notify_all()
                self._report_drained(member)
                self._on_idle(member)

    def _report_drained(self, member: Member) -> None:
        # Judged by cores, which include those of jobs that are being submitted.
        if member.state is MemberState.DRAINING and not member.cores_used:
            self._on_drained(member)

    def _ready(self) -> list[Member]:
        return [member for member in self.members if member.state is MemberState.READY]


def lost_result(why: str, cause: EndCause = EndCause.BLOCK_LOST, *, started: bool = True) -> JobResult:
    """Return the result of a job whose member was lost, or that has none."""
    return JobResult(JobStatus.FAILED, exception=cause.value, note=why, started=started)
