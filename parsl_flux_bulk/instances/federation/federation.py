"""One instance made of others, its members, which come and go: the blocks of a provider.

::

    FederationConnection.submit ──> MemberRegistry.place ──> the member's Connection
    FederationCompletion.poll <── one queue <── push <── the members' event sources

Users see one instance whose capacity changes. The high bits of a job id are the member's number. When a
member is lost, its jobs end with the exception ``block-lost`` and its peers are lost; others continue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from parsl_flux_bulk.errors import InstanceLost, OutputUnavailable
from parsl_flux_bulk.instances.base import (
    FLUX_IN_FLIGHT,
    Capacity,
    Connection,
    JobId,
    JobRequest,
    Output,
    Position,
    Refusal,
)
from parsl_flux_bulk.instances.events import MemberInstance
from parsl_flux_bulk.instances.federation.completion import KEY_PREFIX, FederationCompletion
from parsl_flux_bulk.instances.federation.members import Member, MemberState, own_id
from parsl_flux_bulk.instances.federation.placement import Placement
from parsl_flux_bulk.instances.federation.registry import MemberRegistry
from parsl_flux_bulk.jobspec.jobspec import Demand
from parsl_flux_bulk.protocol import variables


class Federation:
    """The instance; see the module.

    Parameters
    ----------
    policy : Placement, optional
        For blocks by default.
    on_drained, on_idle : callable
        See :class:`.registry.MemberRegistry`.

    Attributes
    ----------
    registry : MemberRegistry
        The members.
    """

    def __init__(
        self,
        policy: Placement | None = None,
        *,
        on_drained: Callable[[Member], None] = lambda _: None,
        on_idle: Callable[[Member], None] = lambda _: None,
    ) -> None:
        self.registry = MemberRegistry(policy or Placement(), on_drained, on_idle)

    def add(
        self,
        name: str,
        instance: MemberInstance,
        *,
        ends_at: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Member:
        """Add an instance that has been started.

        Raises
        ------
        InstanceLost
            The instance was lost meanwhile.
        """
        connection = instance.connect()
        try:
            capacity = connection.capacity()
        finally:
            connection.close()
        member = self.registry.add(name, instance, capacity, ends_at, environment or {})
        if member.state is MemberState.REMOVED:
            raise InstanceLost(member.removed_because)
        return member

    @property
    def description(self) -> str:
        members = self.registry.members
        return f"{len(members)} block(s)" + "".join(f"; {m.name}: {m.instance.description}" for m in members)

    def start(self) -> None:
        pass

    def connect(self) -> FederationConnection:
        return FederationConnection(self.registry)

    def completion(self) -> FederationCompletion:
        return self.registry.open_completion()

    def job_name(self, job_id: JobId) -> str:
        member = self.registry.member_of(job_id)
        return member.instance.job_name(own_id(job_id)) if member else str(own_id(job_id))

    def close(self) -> None:
        for member in self.registry.members:
            self.registry.remove(member, "the executor was shut down")


class FederationConnection:
    """Submits each job to the member where it is placed; see :class:`.base.Connection`."""

    def __init__(self, registry: MemberRegistry) -> None:
        self._registry = registry
        self._connections: dict[Member, Connection] = {}

    @property
    def in_flight(self) -> int:
        """The least of the members that get jobs now."""
        members = self._registry.policy.preferred(self._registry.members)
        known = [connection.in_flight for member in members if (connection := self._connections.get(member))]
        return min(known, default=FLUX_IN_FLIGHT)

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        self._registry.policy.prepare([request.jobspec for request in requests])
        answers: list[JobId | Refusal] = [Refusal("")] * len(requests)
        placed: dict[Member, list[tuple[int, JobRequest, Demand]]] = {}
        for index, request in enumerate(requests):
            demand = self._registry.policy.demand(request.jobspec)
            member = self._registry.place(demand)
            if isinstance(member, Member):
                placed.setdefault(member, []).append((index, self._localize(request, member), demand))
            else:
                answers[index] = member
        for member, jobs in placed.items():
            replies = self._submit_to(member, [request for _, request, _ in jobs])
            for (index, _, demand), answer in zip(jobs, replies, strict=True):
                answers[index] = self._registry.placed(member, demand, answer)
        return answers

    def _submit_to(self, member: Member, requests: list[JobRequest]) -> Sequence[JobId | Refusal | None]:
        try:
            return self._connection(member).submit(requests)
        except InstanceLost as error:
            self._registry.remove(member, str(error))
            return [None] * len(requests)

    def _localize(self, request: JobRequest, member: Member) -> JobRequest:
        """Add the member's environment and the channel's address in the member to a jobspec."""
        own = request.jobspec.environment
        key = own.get(variables.CHANNEL, "")
        address = self._registry.address(key, member) if key.startswith(KEY_PREFIX) else {}
        if not member.environment and not address:
            return request
        environment = {**member.environment, **own, **address}
        return JobRequest(request.jobspec.with_system(environment=environment), request.urgency)

    def _connection(self, member: Member) -> Connection:
        connection = self._connections.get(member)
        if connection is None:
            connection = self._connections[member] = member.instance.connect()
        return connection

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        by_member: dict[Member, list[JobId]] = {}
        for job_id in job_ids:
            member = self._registry.member_of(job_id)
            if member is not None:
                by_member.setdefault(member, []).append(own_id(job_id))
        for member, own_ids in by_member.items():
            try:
                self._connection(member).cancel(own_ids, reason)
            except InstanceLost as error:
                self._registry.remove(member, str(error))

    def output(self, job_id: JobId, start: Position) -> Output:
        member = self._registry.member_of(job_id)
        why = "it was never placed in one, or its instance has ended"
        if member is not None:
            try:
                return self._connection(member).output(own_id(job_id), start)
            except InstanceLost as error:
                why = str(error)
        raise OutputUnavailable(
            f"the output of a job is lost with its block or node job ({why}): name a file for it"
        )

    def capacity(self) -> Capacity:
        return self._registry.capacity()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
