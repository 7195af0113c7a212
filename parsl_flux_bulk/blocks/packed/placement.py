"""Which jobs are packed: those that fit a node job and ask for nothing that only Flux gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import Capacity, Instance
from parsl_flux_bulk.instances.federation.members import Member
from parsl_flux_bulk.instances.federation.placement import Placement
from parsl_flux_bulk.jobspec.jobspec import Demand, Jobspec

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


class PackedPlacement(Placement):
    """The policy for packed jobs: node jobs are preferred until the first job that none of them can run.

    Parameters
    ----------
    outer : Instance
        Its resources include those of the node jobs.
    dissolve : callable
        Called once, at the first job that only the outer instance can run: a node job must get no more jobs.
    refill : callable
        Called with the number of jobs that are about to be placed, and their cores; may block.
    node_jobs_queue : callable
        Tells whether there are no node jobs yet, because those that were submitted wait for cores.

    Attributes
    ----------
    dissolved : bool
        Whether `dissolve` was called.
    """

    def __init__(
        self,
        outer: Instance,
        dissolve: Callable[[], None],
        refill: Callable[[int, int], None],
        node_jobs_queue: Callable[[], bool],
    ) -> None:
        self._outer = outer
        self._dissolve = dissolve
        self._refill = refill
        self._node_jobs_queue = node_jobs_queue
        self._outer_lost = ""
        self.dissolved = False

    def is_outer(self, member: Member) -> bool:
        """Whether a member is the outer instance."""
        return member.instance is self._outer

    def label(self, member: Member) -> str:
        return "outer instance" if self.is_outer(member) else f"node job {member.name}"

    def capacity(self, members: Sequence[Member]) -> Capacity:
        return next((member.capacity for member in members if self.is_outer(member)), Capacity(0, 0, 0))

    def demand(self, jobspec: Jobspec) -> Demand:
        demand = jobspec.demand
        return demand if is_packable(jobspec, demand) else demand._replace(particular=True)

    def prepare(self, jobspecs: Sequence[Jobspec]) -> None:
        if self.dissolved:
            return
        demands = [self.demand(jobspec) for jobspec in jobspecs]
        cores = sum(demand.cores for demand in demands if not demand.particular)
        if cores:
            self._refill(len(demands), cores)

    def candidates(self, fitting: list[Member], demand: Demand) -> list[Member]:
        node_jobs = [member for member in fitting if not self.is_outer(member)]
        if node_jobs and not demand.particular:
            return node_jobs
        if not self.dissolved and (demand.particular or not self._node_jobs_queue()):
            self.dissolved = True
            self._dissolve()
        return [member for member in fitting if self.is_outer(member)] or fitting

    def preferred(self, members: list[Member]) -> list[Member]:
        return [member for member in members if self.dissolved or not self.is_outer(member)]

    def removed(self, member: Member) -> None:
        if self.is_outer(member):
            self._outer_lost = member.removed_because

    def check(self) -> None:
        if self._outer_lost:
            raise InstanceLost(self._outer_lost)


def is_packable(jobspec: Jobspec, demand: Demand) -> bool:
    """Tell whether a job needs nothing that only Flux gives."""
    tasks, options = jobspec.data["tasks"], jobspec.shell_options
    if demand.exclusive or len(tasks) > 1 or not _OPTIONS.issuperset(options):
        return False
    if any(str(options.get(key)).startswith("map:") for key in ("cpu-affinity", "gpu-affinity")):
        return False
    # Flux's shell may be told of other implementations of PMI; an embedded instance has PMI-1.
    return options.get("pmi", "simple") in ("simple", "off")
