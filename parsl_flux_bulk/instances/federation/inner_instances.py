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
from parsl_flux_bulk.instances.federation.completion import FederationCompletion
from parsl_flux_bulk.instances.federation.federation import Federation, FederationConnection
from parsl_flux_bulk.instances.federation.inner_instance_launcher import InstanceLauncher, attach
from parsl_flux_bulk.instances.federation.members import Member, own_id
from parsl_flux_bulk.instances.federation.placement import NestedPlacement, divide
from parsl_flux_bulk.instances.flux.instance import FluxInstance

JOBS_PER_INSTANCE = 100
"""Small jobs that justify one more inner instance, whose start takes a core for about 1 s."""

MOST_INSTANCES = 16
"""Inner instances started by default at most: each takes some 60 MB of memory."""

LIMIT = 100
"""Inner instances at most: there are 127 ranges of job ids."""


class InnerInstances:
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
        self._outer = outer
        self._most = most
        self._attach = attach
        self._policy = NestedPlacement(outer, self._dissolve)
        self._federation = Federation(self._policy, on_drained=self._end_drained)
        self._launcher: InstanceLauncher | None = None

    @property
    def description(self) -> str:
        inner = len(self._inner_members())
        return self._outer.description + (f", with {inner} inner instances" if inner else "")

    def start(self) -> None:
        self._outer.start()
        capacity = self._federation.add("outer", self._outer).capacity
        shares = divide(capacity, self._most)
        if len(shares) > 1:
            self._launcher = InstanceLauncher(
                self._outer, shares, self._add, self._federation.registry, self._attach
            )
            self._launcher.start()

    def connect(self) -> FederationConnection:
        return self._federation.connect()

    def completion(self) -> FederationCompletion:
        return self._federation.completion()

    def capacity(self) -> Capacity:
        """Return the outer instance's resources."""
        return self._federation.registry.capacity()

    def job_name(self, job_id: JobId) -> str:
        # All members are Flux and format ids alike; a removed member's jobs still have names.
        return self._outer.job_name(own_id(job_id))

    def close(self) -> None:
        # Inner instances are jobs of the outer one, which must outlive them.
        for member in self._inner_members():
            self._federation.registry.remove(member, "shutdown")
        if self._launcher is not None:
            self._launcher.stop()
        self._federation.close()
        self._outer.close()

    def _inner_members(self) -> list[Member]:
        return [member for member in self._federation.registry.members if not self._policy.is_outer(member)]

    def _add(self, name: str, instance: Instance) -> Member:
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


def automatic(instance: Instance, jobs: int) -> int:
    """Return how many inner instances so many small jobs justify; 0 or 1 means none.

    Only for an owned instance: users look for their jobs in an instance that they attached to.
    """
    if isinstance(instance, FluxInstance) and instance.owned:
        return min(jobs // JOBS_PER_INSTANCE, MOST_INSTANCES)
    return 0
