"""One instance made of others, its members, which come and go: the blocks of a provider.

::

    Connection.submit ──> place ──> a member's Connection
    Completion.poll <── one queue <── a thread for each member, in its Completion.poll

Whoever uses it sees one instance whose capacity changes. A job is placed whole, in one member: the
fullest one where it fits now, so that members fall idle and can be given back. Members are told
apart in the high bits of job ids. When a member is lost, its jobs end with the exception
``block-lost`` and its peers are lost; the others do not notice.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    CHANNEL_VARIABLE,
    Capacity,
    CapacityChanged,
    Connection,
    EndCause,
    Instance,
    JobId,
    JobRequest,
    JobResult,
    Refusal,
)
from parsl_flux_bulk.instances.federation.completion import KEY_PREFIX, FederationCompletion
from parsl_flux_bulk.instances.federation.members import (
    MEMBER_SHIFT,
    Member,
    lost_result,
    no_room,
    own_id,
)
from parsl_flux_bulk.jobspec.jobspec import Demand

logger = logging.getLogger(__name__)

OPEN_TIMEOUT = 30.0
"""Seconds that a member's completion may take to open."""


class Federation:
    """The instance; see the module. Members are added and removed from any thread."""

    member_kind = "block"
    """What messages call a member."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._job_ended = threading.Condition(self.lock)
        self._members: dict[int, Member] = {}
        self._completions: dict[str, FederationCompletion] = {}
        self._numbers = itertools.count(1)
        self._nowhere = itertools.count(1)
        self._waiting: dict[JobId, int] = {}
        self._changes = 0

    # -- the members ----------------------------------------------------------------------------

    def add(
        self,
        name: str,
        instance: Instance,
        *,
        ends_at: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Member:
        """Add an instance that has been started.

        Raises
        ------
        InstanceLost
            If it is gone already.
        """
        connection = instance.connect()
        try:
            capacity = connection.capacity()
        finally:
            connection.close()
        member = Member(next(self._numbers), name, instance, capacity, ends_at, environment or {})
        with self.lock:
            branches = [completion.adopt(member) for completion in self._completions.values()]
        for branch in branches:
            branch.opened.wait(OPEN_TIMEOUT)
        with self.lock:
            if not member.lost:
                self._members[member.number] = member
                self._announce_capacity()
        logger.info("%s %s is there: %s", self.member_kind, name, instance.description)
        return member

    def close_member(self, member: Member) -> None:
        """Give a member no more jobs; those that it has go on."""
        with self.lock:
            if not member.closing:
                member.closing = True
                self._announce_capacity()

    def remove(self, member: Member, why: str) -> None:
        """Let go of a member and close it; jobs that it still has end as lost."""
        with self.lock:
            if member.lost:
                return
            member.lost = why
            self._members.pop(member.number, None)
            if member.jobs:
                logger.warning(
                    "%s %s was lost with %d job(s): %s", self.member_kind, member.name, len(member.jobs), why
                )
            member.jobs.clear()
            self._job_ended.notify_all()
            completions = list(self._completions.values())
            for completion in completions:
                completion.member_lost(member)
            self._announce_capacity()
        for completion in completions:
            completion.part_with(member)
        member.instance.close()

    def wait_empty(self, member: Member, timeout: float) -> bool:
        """Wait until a member has no jobs; return whether that is so."""
        with self._job_ended:
            return self._job_ended.wait_for(lambda: not member.jobs, timeout)

    @property
    def members(self) -> list[Member]:
        """Those that are there, also while they close."""
        with self.lock:
            return list(self._members.values())

    # -- Instance -------------------------------------------------------------------------------

    @property
    def description(self) -> str:
        members = self.members
        return f"{len(members)} block(s)" + "".join(f"; {m.name}: {m.instance.description}" for m in members)

    def start(self) -> None:
        pass

    def connect(self) -> FederationConnection:
        return FederationConnection(self)

    def completion(self) -> FederationCompletion:
        with self.lock:
            completion = FederationCompletion(self)
            self._completions[completion.key] = completion
            branches = [completion.adopt(member) for member in self._members.values()]
        for branch in branches:
            branch.opened.wait(OPEN_TIMEOUT)
        return completion

    def job_name(self, job_id: JobId) -> str:
        member = self.member_of(job_id)
        return member.instance.job_name(own_id(job_id)) if member else str(own_id(job_id))

    def close(self) -> None:
        for member in self.members:
            self.remove(member, "the executor was shut down")

    # -- for connections and completions ----------------------------------------------------------

    def total(self) -> Capacity:
        """What the members have that take jobs."""
        usable = [member.capacity for member in self._usable()]
        return Capacity(
            sum(c.nodes for c in usable), sum(c.cores for c in usable), sum(c.gpus for c in usable)
        )

    def place(self, demand: Demand) -> Member | Refusal | JobId:
        """Choose a member for a job, and count the job's cores there.

        Returns
        -------
        Member, Refusal or JobId
            The id, which `why_nowhere` explains, if there is no member now that it could go to.
        """
        with self.lock:
            usable = self._usable()
            if not usable:
                return self.nowhere()
            large = [member for member in usable if member.has_room(demand)]
            possible = [member for member in large if member.has_time(demand)]
            if not possible:
                if any(member.had_time(demand) for member in large):
                    job_id = self.nowhere()
                    self._waiting[job_id] = self._changes
                    return job_id
                return Refusal(no_room(demand, usable))
            possible = self._preferred(possible, demand)
            now = [member for member in possible if member.free_cores >= member.cores_of(demand)]
            # The fullest that has room, so that others fall idle; else the one that is least behind.
            member = min(now, key=_free_cores) if now else max(possible, key=_free_cores)
            member.cores_used += member.cores_of(demand)
            return member

    def _preferred(self, possible: list[Member], demand: Demand) -> list[Member]:
        """Which of the members to choose from, all of which could run the job; at least one."""
        return possible

    def nowhere(self) -> JobId:
        """An id for a job that no member has: `watch` reports its end, before it started."""
        return next(self._nowhere)

    def why_nowhere(self, job_id: JobId) -> JobResult:
        """How a job ends that no member has."""
        with self.lock:
            if self._waiting.pop(job_id, -1) == self._changes:
                return lost_result("no block has so much time left", EndCause.NO_BLOCK, started=False)
            # There are other members by now: it is worth another attempt.
            return lost_result("there was no block to go to", started=False)

    def placed(self, member: Member, demand: Demand, answer: JobId | Refusal | None) -> JobId | Refusal:
        """Take down what a member answered to a job that was placed there; None if it is gone."""
        with self.lock:
            if answer is None:
                return self.nowhere()
            if isinstance(answer, Refusal):
                member.cores_used -= member.cores_of(demand)
                return answer
            if not member.lost:
                member.jobs[answer] = demand
            return (member.number << MEMBER_SHIFT) | answer

    def job_ended(self, member: Member, job_id: JobId) -> None:
        """A member's job, by its own id, has ended."""
        with self._job_ended:
            member.remove_job(job_id)
            if not member.jobs:
                self._job_ended.notify_all()

    def member_of(self, job_id: JobId) -> Member | None:
        """The member that a job is in, while it is there."""
        return self._members.get(job_id >> MEMBER_SHIFT)

    def address(self, key: str, member: Member) -> Mapping[str, str]:
        """The way from a member's jobs to the channel of the completion with this key."""
        completion = self._completions.get(key)
        return completion.address_in(member) if completion else {}

    def closed(self, completion: FederationCompletion) -> None:
        """A completion has been closed."""
        with self.lock:
            self._completions.pop(completion.key, None)

    def _usable(self) -> list[Member]:
        return [member for member in self.members if not member.closing]

    def _announce_capacity(self) -> None:
        self._changes += 1
        event = CapacityChanged(self.total())
        for completion in self._completions.values():
            completion.put([event])


class FederationConnection:
    """Places jobs, and hands them to their members' connections."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._connections: dict[Member, Connection] = {}

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        answers: list[JobId | Refusal] = [Refusal("")] * len(requests)
        placed: dict[Member, list[tuple[int, JobRequest, Demand]]] = {}
        for index, request in enumerate(requests):
            demand = request.jobspec.demand
            member = self._federation.place(demand)
            if not isinstance(member, Member):
                answers[index] = member
            else:
                placed.setdefault(member, []).append((index, self._localised(request, member), demand))
        for member, jobs in placed.items():
            given = self._submit_to(member, [request for _, request, _ in jobs])
            for (index, _, demand), answer in zip(jobs, given, strict=True):
                answers[index] = self._federation.placed(member, demand, answer)
        return answers

    def _submit_to(self, member: Member, requests: list[JobRequest]) -> Sequence[JobId | Refusal | None]:
        try:
            return self._connection(member).submit(requests)
        except InstanceLost as error:
            self._federation.remove(member, str(error))
            return [None] * len(requests)

    def _localised(self, request: JobRequest, member: Member) -> JobRequest:
        """Give a job the environment of the member that it goes to, and the way to the channel there."""
        own = request.jobspec.environment
        key = own.get(CHANNEL_VARIABLE, "")
        address = self._federation.address(key, member) if key.startswith(KEY_PREFIX) else {}
        if not member.environment and not address:
            return request
        environment = {**member.environment, **own, **address}
        return JobRequest(request.jobspec.with_environment(environment), request.urgency)

    def _connection(self, member: Member) -> Connection:
        connection = self._connections.get(member)
        if connection is None:
            connection = self._connections[member] = member.instance.connect()
        return connection

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        by_member: dict[Member, list[JobId]] = {}
        for job_id in job_ids:
            member = self._federation.member_of(job_id)
            if member is not None:
                by_member.setdefault(member, []).append(own_id(job_id))
        for member, own in by_member.items():
            try:
                self._connection(member).cancel(own, reason)
            except InstanceLost as error:
                self._federation.remove(member, str(error))

    def output(self, job_id: JobId) -> tuple[str, str]:
        member = self._federation.member_of(job_id)
        if member is None:
            return "", ""
        try:
            return self._connection(member).output(own_id(job_id))
        except InstanceLost:
            return "", ""

    def capacity(self) -> Capacity:
        return self._federation.total()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def _free_cores(member: Member) -> int:
    return member.free_cores
