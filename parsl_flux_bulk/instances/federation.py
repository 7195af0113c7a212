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
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    BLOCK_LOST,
    CHANNEL_VARIABLE,
    NO_BLOCK,
    Capacity,
    CapacityChanged,
    ChannelAddress,
    Completion,
    Connection,
    Event,
    Instance,
    JobEnded,
    JobId,
    JobRequest,
    JobResult,
    JobStatus,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
)

logger = logging.getLogger(__name__)

OPEN_TIMEOUT = 30.0
"""Seconds that a member's completion may take to open."""

CLOSE_TIMEOUT = 20.0
"""Seconds that a member may take to close."""

_MEMBER_SHIFT = 64
"""A member's own ids have 64 bits at most."""


class Demand(NamedTuple):
    """What a job needs of the member that it goes to.

    Attributes
    ----------
    nodes, cores, gpus : int
    exclusive : bool
        Whole nodes.
    duration : float
        Seconds; 0 is no limit.
    particular : bool
        Names something that not every instance has: a queue, a bank, a property, another job; or files
        by its own id, which is unique in one instance only.
    """

    nodes: int
    cores: int
    gpus: int
    exclusive: bool = False
    duration: float = 0.0
    particular: bool = False


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
        return job_id >> _MEMBER_SHIFT == self.number

    def remove_job(self, job_id: JobId) -> None:
        """A job ended."""
        demand = self.jobs.pop(job_id, None)
        if demand is not None:
            self.cores_used -= self.cores_of(demand)
            if not self.jobs:
                self.idle_since = time.monotonic()


class Federation:
    """The instance; see the module. Members are added and removed from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._job_ended = threading.Condition(self.lock)
        self._members: dict[int, Member] = {}
        self._namers: dict[int, Callable[[JobId], str]] = {}
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
                self._namers[member.number] = instance.job_name
                self._announce_capacity()
        logger.info("block %s is there: %s", name, instance.description)
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
                logger.warning("block %s was lost with %d job(s): %s", member.name, len(member.jobs), why)
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
        # Also of a member that is gone: its jobs are still spoken of.
        namer = self._namers.get(job_id >> _MEMBER_SHIFT, str)
        return namer(_own(job_id))

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
                return Refusal(_no_room(demand, usable))
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
                return _lost("no block has so much time left", NO_BLOCK, started=False)
            # There are other members by now: it is worth another attempt.
            return _lost("there was no block to go to", started=False)

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
            return (member.number << _MEMBER_SHIFT) | answer

    def job_ended(self, member: Member, job_id: JobId) -> None:
        """A member's job, by its own id, has ended."""
        with self._job_ended:
            member.remove_job(job_id)
            if not member.jobs:
                self._job_ended.notify_all()

    def member_of(self, job_id: JobId) -> Member | None:
        """The member that a job is in, while it is there."""
        return self._members.get(job_id >> _MEMBER_SHIFT)

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
            try:
                jobspec = json.loads(request.jobspec)
                demand = demand_of(jobspec)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                answers[index] = Refusal(f"jobspec: {error!r}")
                continue
            member = self._federation.place(demand)
            if not isinstance(member, Member):
                answers[index] = member
            else:
                placed.setdefault(member, []).append(
                    (index, self._localised(request, jobspec, member), demand)
                )
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

    def _localised(self, request: JobRequest, jobspec: dict[str, Any], member: Member) -> JobRequest:
        """Give a job the environment of the member that it goes to, and the way to the channel there."""
        if not member.environment and _KEY_PREFIX not in request.jobspec:
            return request
        system = jobspec["attributes"]["system"]
        environment = {**member.environment, **system.get("environment", {})}
        key = environment.get(CHANNEL_VARIABLE, "")
        if key.startswith(_KEY_PREFIX):
            environment.update(self._federation.address(key, member))
        system["environment"] = environment
        return JobRequest(json.dumps(jobspec), request.urgency, request.trusted)

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
                by_member.setdefault(member, []).append(_own(job_id))
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
            return self._connection(member).output(_own(job_id))
        except InstanceLost:
            return "", ""

    def capacity(self) -> Capacity:
        return self._federation.total()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


class _Branch:
    """One member's completion, and the thread that waits in it, for one of the federation's."""

    def __init__(self, owner: FederationCompletion, member: Member) -> None:
        self.member = member
        self.watched: set[JobId] = set()
        self.peers: set[PeerId] = set()
        self.address: Mapping[str, str] = {}
        self.opened = threading.Event()
        self._owner = owner
        self._completion: Completion | None = None
        self._inbox: deque[Callable[[Completion], None]] = deque()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"block-{member.name}", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[Completion], None]) -> None:
        """Run `function` in the thread."""
        self._inbox.append(function)
        completion = self._completion
        if completion is not None:
            completion.wake()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stop = True
        self.call(lambda _: None)
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        try:
            completion = self.member.instance.completion()
            try:
                self.address = completion.channel().environment
                self._completion = completion
                self.opened.set()
                while not self._stop:
                    while self._inbox:
                        self._inbox.popleft()(completion)
                    if events := completion.poll(None):
                        self._owner.take_from(self, events)
            finally:
                self._completion = None
                completion.close()
        except InstanceLost as error:
            self._owner.federation.remove(self.member, str(error))
        except Exception as error:
            logger.exception("the thread of block %s failed", self.member.name)
            self._owner.federation.remove(self.member, repr(error))
        finally:
            self.opened.set()


class FederationCompletion:
    """Hears of all members' jobs and peers."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.key = f"{_KEY_PREFIX}{next(_keys)}"
        self._changed = threading.Condition(federation.lock)
        self._branches: dict[Member, _Branch] = {}
        self._events: list[Event] = []
        self._woken = False
        self._closed = False

    # -- Completion -----------------------------------------------------------------------------

    def watch(self, job_id: JobId) -> None:
        own = _own(job_id)
        with self._changed:
            branch = self._branch(job_id)
            if branch is not None:
                branch.watched.add(own)
            elif job_id >> _MEMBER_SHIFT:
                self._events.append(JobEnded(job_id, _lost("its block is not there any more")))
            else:
                self._events.append(JobEnded(job_id, self.federation.why_nowhere(job_id)))
        if branch is not None:
            branch.call(lambda completion: completion.watch(own))

    def poll(self, timeout: float | None) -> list[Event]:
        if self._closed:
            raise InstanceLost("the completion is closed")
        with self._changed:
            if timeout != 0:
                self._changed.wait_for(lambda: self._events or self._woken, timeout)
            self._woken = False
            events, self._events = self._events, []
            return events

    def send(self, peer: PeerId, body: bytes) -> None:
        member, own = cast("tuple[Member, PeerId]", peer)
        branch = self._branches.get(member)
        if branch is not None:
            branch.call(lambda completion: completion.send(own, body))

    def channel(self) -> ChannelAddress:
        """A name for it only: each job gets the address in the member that it is placed in."""
        return ChannelAddress({CHANNEL_VARIABLE: self.key})

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.federation.closed(self)
        for branch in list(self._branches.values()):
            branch.stop()

    # -- for the federation and the branches ------------------------------------------------------

    def adopt(self, member: Member) -> _Branch:
        """Serve a new member."""
        branch = self._branches[member] = _Branch(self, member)
        return branch

    def address_in(self, member: Member) -> Mapping[str, str]:
        """The way from a member's jobs to this completion."""
        branch = self._branches.get(member)
        return branch.address if branch is not None else {}

    def put(self, events: Sequence[Event]) -> None:
        """Add events."""
        with self._changed:
            self._events.extend(events)
            self._changed.notify_all()

    def take_from(self, branch: _Branch, events: Sequence[Event]) -> None:
        """Add a member's events, as the federation's."""
        member = branch.member
        with self._changed:
            if member.lost:
                return
            for event in events:
                if isinstance(event, JobEnded):
                    self.federation.job_ended(member, event.job_id)
                    branch.watched.discard(event.job_id)
                    job_id = (member.number << _MEMBER_SHIFT) | event.job_id
                    self._events.append(JobEnded(job_id, event.result))
                elif isinstance(event, PeerMessage):
                    branch.peers.add(event.peer)
                    self._events.append(PeerMessage((member, event.peer), event.body))
                elif isinstance(event, PeerLost):
                    branch.peers.discard(event.peer)
                    self._events.append(PeerLost((member, event.peer)))
            self._changed.notify_all()

    def member_lost(self, member: Member) -> None:
        """End a lost member's jobs and peers."""
        branch = self._branches.get(member)
        if branch is not None:
            name = f"block {member.name}"
            # Relayed blocks say themselves which they are.
            result = _lost(member.lost if member.lost.startswith(name) else f"{name}: {member.lost}")
            ids = [(member.number << _MEMBER_SHIFT) | own for own in branch.watched]
            self.put([JobEnded(job_id, result) for job_id in ids])
            self.put([PeerLost((member, peer)) for peer in branch.peers])

    def part_with(self, member: Member) -> None:
        """End a lost member's thread."""
        branch = self._branches.pop(member, None)
        if branch is not None:
            branch.stop()

    def _branch(self, job_id: JobId) -> _Branch | None:
        member = self.federation.member_of(job_id)
        return self._branches.get(member) if member is not None else None


_PARTICULAR = ("queue", "bank", "project", "constraints", "dependencies")

_KEY_PREFIX = "federation:"
_keys = itertools.count(1)


def demand_of(jobspec: dict[str, Any]) -> Demand:
    """Add up what a jobspec (RFC 25, version 1) asks for."""
    totals = {"node": 0, "core": 0, "gpu": 0}
    exclusive = False

    def visit(resource: dict[str, Any], times: int) -> None:
        nonlocal exclusive
        times *= int(resource.get("count", 1))
        kind = resource["type"]
        exclusive = exclusive or bool(resource.get("exclusive"))
        if kind in totals:
            totals[kind] += times
        for inner in resource.get("with", ()):
            visit(inner, times)

    for resource in jobspec["resources"]:
        visit(resource, 1)
    system = jobspec["attributes"]["system"]
    duration = float(system.get("duration", 0) or 0)
    options = system.get("shell", {}).get("options", {})
    particular = any(key in system for key in _PARTICULAR) or "{{" in str(options.get("output", ""))
    return Demand(max(1, totals["node"]), totals["core"], totals["gpu"], exclusive, duration, particular)


def _lost(why: str, exception: str = BLOCK_LOST, *, started: bool = True) -> JobResult:
    return JobResult(JobStatus.FAILED, exception=exception, note=why, started=started)


def _free_cores(member: Member) -> int:
    return member.free_cores


def _own(job_id: JobId) -> JobId:
    return job_id & ((1 << _MEMBER_SHIFT) - 1)


def _no_room(demand: Demand, members: list[Member]) -> str:
    largest = max(members, key=lambda m: m.capacity.cores).capacity
    wanted = f"{demand.nodes} node(s), {demand.cores} core(s), {demand.gpus} GPU(s)"
    if demand.duration:
        wanted += f" for {demand.duration:g} s"
    return (
        f"unsatisfiable request: no block has {wanted}; the largest has {largest.nodes} node(s), "
        f"{largest.cores} core(s), {largest.gpus} GPU(s)"
    )
