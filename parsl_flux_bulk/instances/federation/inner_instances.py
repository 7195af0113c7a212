"""Flux instances inside a Flux instance: more small jobs a second than one broker can start.

::

    InnerInstances ──> Federation, with NestedPlacement
         └──> InstanceLauncher, a thread: submits the inner instances as jobs, adds and removes them

A job costs a broker about 25 ms of work, in threads that wait for each other, whatever its resources: one
instance starts some 40 jobs a second, on two cores or on two hundred. Several instances, each with its share
of the cores, start as many times more. They are jobs of the outer instance, which binds them to their cores.
No two of them issue the same job id (``modprobe/rc1.d``), because jobs may name files by their ids.

Inner instances get the jobs that fit them. The first job that does not (too large, with GPUs, or naming
something that only the outer instance has) dissolves them: they get no more jobs, end when they are empty,
and all later jobs go to the outer instance in the order of their submission. So no job waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from parsl_flux_bulk.instances.base import Capacity, Instance, JobId
from parsl_flux_bulk.instances.events import MemberInstance
from parsl_flux_bulk.instances.federation.completion import FederationCompletion
from parsl_flux_bulk.instances.federation.federation import Federation, FederationConnection
from parsl_flux_bulk.instances.federation.inner_instance_launcher import InstanceLauncher, Launcher, attach
from parsl_flux_bulk.instances.federation.members import Member, own_id
from parsl_flux_bulk.instances.federation.placement import NestedPlacement, divide
from parsl_flux_bulk.instances.flux.instance import FluxInstance

LIMIT = 100
"""Inner instances at most: there are 127 ranges of job ids."""


class NestedInstances:
    """A Flux instance, and members that are jobs in it and run the small jobs.

    Parameters
    ----------
    outer : FluxInstance
    policy : NestedPlacement
        For the outer instance; calls `dissolve`.
    """

    def __init__(
        self, outer: FluxInstance, policy: Callable[[Instance, Callable[[], None]], NestedPlacement]
    ):
        self._outer = outer
        self._policy = policy(outer, self._dissolve)
        self._federation = Federation(self._policy, on_drained=self._end_drained, on_idle=self._on_idle)
        self._launcher: Launcher | None = None

    def _new_launcher(self, capacity: Capacity) -> Launcher | None:
        """Return what starts the members; None to start none."""
        raise NotImplementedError

    def _describe(self, members: int) -> str:
        """Return what to say of so many members."""
        raise NotImplementedError

    def _on_idle(self, member: Member) -> None:
        """Note that a member has no jobs left; under the registry's lock."""

    @property
    def description(self) -> str:
        inner = len(self._inner_members())
        return self._outer.description + (f", {self._describe(inner)}" if inner else "")

    def start(self) -> None:
        self._outer.start()
        capacity = self._federation.add("outer", self._outer).capacity
        self._launcher = self._new_launcher(capacity)
        if self._launcher is not None:
            self._launcher.start()

    def connect(self) -> FederationConnection:
        return self._federation.connect()

    def completion(self) -> FederationCompletion:
        return self._federation.completion()

    def capacity(self) -> Capacity:
        """Return the outer instance's resources."""
        return self._federation.registry.capacity()

    def job_name(self, job_id: JobId) -> str:
        return self._federation.job_name(job_id)

    def close(self) -> None:
        # Members are jobs of the outer instance, which must outlive them.
        for member in self._inner_members():
            self._federation.registry.remove(member, "shutdown")
        if self._launcher is not None:
            self._launcher.stop()
        self._federation.close()
        self._outer.close()

    def _inner_members(self) -> list[Member]:
        return [member for member in self._federation.registry.members if not self._policy.is_outer(member)]

    def _add(self, name: str, instance: MemberInstance) -> Member:
        if isinstance(instance, FluxInstance):
            instance.record_times = self._outer.record_times
        member = self._federation.add(name, instance)
        with self._federation.registry.lock:
            if self._policy.dissolved:  # while the instance started
                self._federation.registry.drain(member)
        return member

    def _dissolve(self) -> None:
        if self._launcher is not None:
            self._launcher.cancel_late()
        for member in self._inner_members():
            self._federation.registry.drain(member)

    def _end_drained(self, member: Member) -> None:
        if self._launcher is not None:
            self._launcher.retire(member.name)


class InnerInstances(NestedInstances):
    """A Flux instance with inner instances for the small jobs.

    Parameters
    ----------
    outer : FluxInstance
    most : int
        Inner instances to start; fewer where there are fewer cores.
    attach : callable
        Returns the inner instance that reported a URI and a host.
    """

    def __init__(
        self, outer: FluxInstance, most: int, attach: Callable[[str, str], Instance] = attach
    ) -> None:
        super().__init__(outer, NestedPlacement)
        self._most = most
        self._attach = attach

    def _new_launcher(self, capacity: Capacity) -> Launcher | None:
        shares = divide(capacity, self._most)
        if len(shares) < 2:
            return None
        return InstanceLauncher(self._outer, self._add, self._federation.registry, shares, self._attach)

    def _describe(self, members: int) -> str:
        return f"with {members} inner instances"

    def job_name(self, job_id: JobId) -> str:
        # All members are Flux and format ids alike; a removed member's jobs still have names.
        return self._outer.job_name(own_id(job_id))


def nest(instance: Instance, instances: int) -> Instance:
    """Return an instance with so many inner ones; the instance itself for 1.

    Raises
    ------
    ValueError
        The instance is not Flux, or the number is too large.
    """
    if instances < 2:
        return instance
    if instances > LIMIT:
        raise ValueError(f"instances must be at most {LIMIT}, not {instances}")
    if not isinstance(instance, FluxInstance):
        raise ValueError(f"instances={instances} needs Flux: only a Flux instance can have others inside it")
    return InnerInstances(instance, instances)
