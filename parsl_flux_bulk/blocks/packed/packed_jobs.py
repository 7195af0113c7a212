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
from collections.abc import Callable, Sequence

from parsl_flux_bulk.blocks.packed.node_job_launcher import NodeJobLauncher
from parsl_flux_bulk.blocks.packed.packing import UNKNOWN, Packing
from parsl_flux_bulk.instances.base import Capacity, Instance, JobId
from parsl_flux_bulk.instances.federation.inner_instance_launcher import START_TIMEOUT
from parsl_flux_bulk.instances.federation.inner_instances import NestedInstances
from parsl_flux_bulk.instances.federation.members import Member, MemberState
from parsl_flux_bulk.instances.federation.placement import NestedPlacement
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.jobspec.jobspec import Demand, Jobspec

REFILL_INTERVAL = 5.0
"""Seconds between two attempts to start more node jobs, while those that there are have no free core."""

_OPTIONS = frozenset(
    [
        "cpu-affinity",
        "env-expand",
        "exit-on-error",
        "exit-timeout",
        "gpu-affinity",
        "input",
        "mpi",
        "output",
        "per-resource",
        "pmi",
        "rlimit",
        "signal",
    ]
)
"""Shell options that an embedded instance applies as Flux does, or that change nothing for MPICH."""


class PackedPlacement(NestedPlacement):
    """The policy for node jobs; see the module."""

    def __init__(
        self, outer: Instance, dissolve: Callable[[], None], refill: Callable[[int, int], None]
    ) -> None:
        super().__init__(outer, dissolve)
        self._refill = refill

    def prepare(self, jobspecs: Sequence[Jobspec]) -> None:
        if self.dissolved:
            return
        demands = [self.demand(jobspec) for jobspec in jobspecs]
        cores = sum(demand.cores for demand in demands if not demand.particular)
        if cores:
            self._refill(len(demands), cores)

    def label(self, member: Member) -> str:
        return "outer instance" if self.is_outer(member) else f"node job {member.name}"

    def demand(self, jobspec: Jobspec) -> Demand:
        demand = jobspec.demand
        return demand if is_packable(jobspec, demand) else demand._replace(particular=True)


def is_packable(jobspec: Jobspec, demand: Demand) -> bool:
    """Tell whether a job needs nothing that only Flux gives."""
    tasks, options = jobspec.data["tasks"], jobspec.system.get("shell", {}).get("options", {})
    if demand.exclusive or len(tasks) > 1 or not _OPTIONS.issuperset(options):
        return False
    if any(str(options.get(key)).startswith("map:") for key in ("cpu-affinity", "gpu-affinity")):
        return False
    # Flux's shell may be told of other implementations of PMI; an embedded instance has PMI-1.
    return options.get("pmi", "simple") in ("simple", "off")


class PackedJobs(NestedInstances):
    """A Flux instance with node jobs where it has free cores.

    Parameters
    ----------
    outer : FluxInstance
    packing : Packing
        What is known of the jobs.
    """

    def __init__(self, outer: FluxInstance, packing: Packing = UNKNOWN) -> None:
        super().__init__(outer, lambda outer, dissolve: PackedPlacement(outer, dissolve, self._refill))
        self._packing = packing
        self._to_come = packing.jobs
        self._node_jobs: NodeJobLauncher | None = None
        self._refilled = time.monotonic()

    def _new_launcher(self, capacity: Capacity) -> NodeJobLauncher:
        self._node_jobs = NodeJobLauncher(self._outer, self._add, self._federation.registry, self._packing)
        return self._node_jobs

    def _refill(self, jobs: int, cores: int) -> None:
        """Start node jobs for these jobs if there are none, or if those that there are have no free core."""
        needed = self._cores_needed(jobs, cores)
        launcher = self._node_jobs
        if launcher is None or not launcher.joined:
            return  # nothing was free at the start
        ready = [member for member in self._inner_members() if member.state is MemberState.READY]
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

    def _on_idle(self, member: Member) -> None:
        if self._node_jobs is not None and not self._policy.is_outer(member):
            self._node_jobs.idle(member)

    def job_node(self, job_id: JobId) -> str:
        """Return the host of a packed job."""
        member = self._federation.registry.member_of(job_id)
        return getattr(member.instance, "host", "") if member is not None else ""

    def _describe(self, members: int) -> str:
        return f"jobs packed into {members} node job(s)"


def pack(instance: Instance, packing: Packing = UNKNOWN) -> Instance:
    """Return a Flux instance with packed jobs; any other instance itself."""
    return PackedJobs(instance, packing) if isinstance(instance, FluxInstance) else instance
