"""Packed jobs in a Flux instance: hundreds a second instead of some twenty.

::

    PackedJobs ──> Federation, with PackedPlacement: the outer instance, and a member for each node job
         └──> NodeJobLauncher, a thread: jobs on each node, whose program runs an embedded instance

A Flux job costs its broker and shell some 40 ms of CPU. A packed job costs a process on its node.

A node job that has been idle for some time ends and gives its cores back, unless it keeps output of jobs.
When jobs need more cores than the node jobs have, others start: where node jobs ended or were lost, and where
other jobs of the instance have ended.

A job is packed if a node job has room for it and it asks for nothing that only Flux gives. The first job
that is not packed dissolves the node jobs: they get no more jobs, end when they are empty, and all later jobs
go to the outer instance in the order of their submission. So no job waits for ever.
"""

from __future__ import annotations

import time

from parsl_flux_bulk.blocks.packed.node_job_launcher import START_TIMEOUT, NodeJobLauncher
from parsl_flux_bulk.blocks.packed.packing import UNKNOWN, Packing
from parsl_flux_bulk.blocks.packed.placement import PackedPlacement
from parsl_flux_bulk.blocks.relay.instance import RelayedInstance
from parsl_flux_bulk.instances.base import Capacity, Instance, JobId
from parsl_flux_bulk.instances.federation.completion import FederationCompletion
from parsl_flux_bulk.instances.federation.federation import Federation, FederationConnection
from parsl_flux_bulk.instances.federation.members import Member, MemberState
from parsl_flux_bulk.instances.flux.instance import FluxInstance

REFILL_INTERVAL = 5.0
"""Seconds between two attempts to start more node jobs, while those that there are have no free core."""


class PackedJobs:
    """A Flux instance with node jobs where it has free cores.

    Parameters
    ----------
    outer : FluxInstance
    packing : Packing
        What is known of the jobs.
    """

    def __init__(self, outer: FluxInstance, packing: Packing = UNKNOWN) -> None:
        self._outer = outer
        self._policy = PackedPlacement(outer, self._dissolve, self._refill, self._node_jobs_queue)
        self._federation = Federation(self._policy, on_drained=self._end_drained, on_idle=self._on_idle)
        self._registry = self._federation.registry
        self._launcher = NodeJobLauncher(outer, self._add, self._registry, packing)
        self._launched = False
        self._packing = packing
        self._to_come = packing.jobs
        self._refilled = time.monotonic()

    @property
    def description(self) -> str:
        count = len(self._node_jobs())
        return self._outer.description + (f", jobs packed into {count} node job(s)" if count else "")

    def launch(self) -> None:
        """Attach to the outer instance, or start it, and submit the first node jobs."""
        self._outer.start()
        self._federation.add("outer", self._outer)
        self._launcher.start()
        self._launched = True

    def start(self) -> None:
        if not self._launched:
            self.launch()
        self._launcher.wait()

    def connect(self) -> FederationConnection:
        return self._federation.connect()

    def completion(self) -> FederationCompletion:
        return self._federation.completion()

    def capacity(self) -> Capacity:
        """Return the outer instance's resources."""
        return self._registry.capacity()

    def job_name(self, job_id: JobId) -> str:
        return self._federation.job_name(job_id)

    def job_node(self, job_id: JobId) -> str:
        """Return the host of a packed job."""
        member = self._registry.member_of(job_id)
        return getattr(member.instance, "host", "") if member is not None else ""

    def close(self) -> None:
        # Node jobs are jobs of the outer instance, which must outlive them.
        for member in self._node_jobs():
            self._registry.remove(member, "shutdown")
        self._launcher.stop()
        self._federation.close()
        self._outer.close()

    def _node_jobs(self) -> list[Member]:
        return [member for member in self._registry.members if not self._policy.is_outer(member)]

    def _ready(self) -> list[Member]:
        return [member for member in self._node_jobs() if member.state is MemberState.READY]

    def _node_jobs_queue(self) -> bool:
        return self._launcher.queued and not self._ready()

    def _add(self, name: str, instance: RelayedInstance) -> Member:
        member = self._federation.add(name, instance)
        with self._registry.lock:
            if self._policy.dissolved:  # while the node job started
                self._registry.drain(member)
        return member

    def _dissolve(self) -> None:
        self._launcher.cancel_late()
        for member in self._node_jobs():
            self._registry.drain(member)

    def _end_drained(self, member: Member) -> None:
        self._launcher.retire(member.name)

    def _on_idle(self, member: Member) -> None:
        if not self._policy.is_outer(member):
            self._launcher.idle(member)

    def _refill(self, jobs: int, cores: int) -> None:
        """Start node jobs for these jobs if there are none, or if those that there are have no free core."""
        needed = self._cores_needed(jobs, cores)
        launcher = self._launcher
        if not launcher.joined or launcher.queued:
            return  # nothing was free at the start, or is now
        ready = self._ready()
        if not ready:
            launcher.launch(START_TIMEOUT, needed)
        elif (
            all(member.free_cores <= 0 for member in ready)
            and time.monotonic() - self._refilled > REFILL_INTERVAL
        ):
            self._refilled = time.monotonic()
            waiting = -sum(member.free_cores for member in ready)
            launcher.launch(0, None if needed is None else needed + waiting)

    def _cores_needed(self, jobs: int, cores: int) -> int | None:
        """Return the cores that these jobs and later ones can use; None if that is not known."""
        if self._packing.cores is None or self._to_come is None:
            return None
        needed = max(cores, self._to_come * self._packing.cores)
        self._to_come = max(0, self._to_come - jobs)
        return needed


def pack(instance: Instance, packing: Packing = UNKNOWN) -> Instance:
    """Return a Flux instance with packed jobs; any other instance itself."""
    return PackedJobs(instance, packing) if isinstance(instance, FluxInstance) else instance
