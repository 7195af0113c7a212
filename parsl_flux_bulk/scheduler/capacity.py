"""What the executor's jobs hold of the instance, and what more would fit.

Jobs of other programs are known as of the last survey (:mod:`.survey`). A job that does not fit beside newer
ones waits inside the instance.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.scheduler.worker_unit import WorkerUnit, worker_unit

_UNKNOWN = Capacity(1, 1, 0)


class Allocation(NamedTuple):
    """Cores and GPUs of a job, and the number of nodes that it needs exclusively."""

    cores: int
    gpus: int = 0
    nodes: int = 0


@dataclass(slots=True)
class Allocations:
    """Sums over the jobs that were submitted and have not ended.

    Attributes
    ----------
    capacity : Capacity or None
        What the instance has; None until it is known, or if it has no cores.
    total : Capacity
        The same; at least one node and one core.
    max_workers : int
        Bound on the workers of one shape.
    max_workers_per_node : int or None
        The same on one node.
    cores, gpus : int
        Held by all jobs.
    leaving_cores, leaving_gpus : int
        Held by worker jobs that will end soon.
    task_cores, task_nodes, task_jobs : int
        Cores, and exclusive nodes, held by task jobs; their number.
    """

    capacity: Capacity | None = None
    total: Capacity = _UNKNOWN
    max_workers: int = sys.maxsize
    max_workers_per_node: int | None = None
    cores: int = 0
    gpus: int = 0
    leaving_cores: int = 0
    leaving_gpus: int = 0
    task_cores: int = 0
    task_nodes: int = 0
    task_jobs: int = 0
    _others: dict[int, tuple[int, int]] = field(default_factory=dict)
    _due: dict[int, int] = field(default_factory=dict)
    _nodes: dict[int, list[list[int]]] = field(default_factory=dict)
    _units: dict[Shape, WorkerUnit] = field(default_factory=dict)

    # -- sizes -------------------------------------------------------------------------------------

    def set_capacity(self, capacity: Capacity) -> None:
        """Note what the instance has."""
        self.capacity = capacity if capacity.cores else None
        self.total = Capacity(max(1, capacity.nodes), max(1, capacity.cores), capacity.gpus)
        self._units.clear()
        self._others.clear()
        self._due.clear()
        self._nodes.clear()

    def set_others(
        self, scope: int, held: tuple[int, int], free: Sequence[tuple[int, int]], due: int = 0
    ) -> None:
        """Note what others hold, or are to get, in a part of the instance, and what is free there.

        Parameters
        ----------
        held : tuple of int
            Cores and GPUs.
        free : sequence of (int, int)
            Cores and GPUs of each node.
        due : int
            Cores that other executors hold, and are to leave to workers of this one.
        """
        self._others[scope] = held
        self._due[scope] = due
        self._nodes[scope] = [list(node) for node in free]

    @property
    def others(self) -> tuple[int, int]:
        """Cores and GPUs that jobs of other programs hold, or are to get."""
        held = self._others.values()
        return sum(cores for cores, _ in held), sum(gpus for _, gpus in held)

    @property
    def due(self) -> int:
        """Cores among those for which worker jobs may wait in the instance (:mod:`.other_executors`)."""
        return sum(self._due.values())

    def of_task(self, resources: Resources) -> Allocation:
        """Return the allocation of a task job."""
        total = self.total
        nodes = resources.num_nodes or 1
        cores, gpus = resources.cores, resources.gpus
        return Allocation(
            nodes * math.ceil(total.cores / total.nodes) if cores is None else cores,
            nodes * (total.gpus // total.nodes) if gpus is None else gpus,
            nodes if resources.exclusive else 0,
        )

    def of_workers(self, shape: Shape, slots: int) -> Allocation:
        """Return the allocation of a worker job."""
        unit = self.unit(shape)
        units = unit.units(slots)
        return Allocation(unit.cores * units, unit.gpus * units)

    def unit(self, shape: Shape) -> WorkerUnit:
        """Return the unit of a shape on the nodes of the instance."""
        unit = self._units.get(shape)
        if unit is None:
            total = self.total
            unit = self._units[shape] = worker_unit(
                shape, total.cores // total.nodes, total.gpus // total.nodes, self.max_workers_per_node
            )
        return unit

    def cores_each(self, shape: Shape) -> float:
        """Return the cores of the instance that a worker occupies."""
        unit = self.unit(shape)
        return unit.cores / unit.workers

    def slots_per_node(self, shape: Shape) -> int:
        """Return the number of workers that fit a node; 1 if none does: the instance reports the error."""
        total = self.total
        unit = self.unit(shape)
        return max(unit.workers, unit.fitting(total.cores // total.nodes, total.gpus // total.nodes))

    def slots_in_total(self, shape: Shape) -> int:
        """Return the number of workers that fit the instance; at least 1."""
        return min(self.max_workers, max(1, self.unit(shape).fitting(self.total.cores, self.total.gpus)))

    def whole_units(self, shape: Shape, slots: int, existing: int) -> int:
        """Round a number of further workers to whole units: up, as far as `max_workers` allows."""
        unit = self.unit(shape)
        if slots < unit.workers:
            return max(slots, min(unit.workers, self.max_workers - existing))
        return slots - slots % unit.workers

    # -- what would fit ----------------------------------------------------------------------------

    @property
    def room(self) -> Allocation:
        """What is free or will be soon; negative where jobs hold more than the instance has."""
        total, (other_cores, other_gpus) = self.total, self.others
        return Allocation(
            total.cores - self.cores + self.leaving_cores - other_cores,
            total.gpus - self.gpus + self.leaving_gpus - other_gpus,
        )

    def has_room(self, need: Allocation) -> bool:
        """Tell whether cores and GPUs of an allocation are free or will be soon."""
        room = self.room
        return need.cores <= room.cores and need.gpus <= room.gpus

    @property
    def overcommitted(self) -> int:
        """Cores by which the jobs inside the instance exceed what others leave of it."""
        return self.cores + self.others[0] - self.total.cores

    def possible(self, need: Allocation) -> bool:
        """Tell whether an allocation would fit the empty instance."""
        total = self.total
        return need.cores <= total.cores and need.gpus <= total.gpus and need.nodes <= total.nodes

    def slots_that_fit(self, shape: Shape) -> int:
        """Return the number of workers for which there is room."""
        return self.slots_instead(Allocation(0), shape)

    def slots_instead(self, allocation: Allocation, shape: Shape) -> int:
        """Return the number of workers for which there would be room without a job that has not started."""
        room = self.room
        fitting = self.unit(shape).fitting(room.cores + allocation.cores, room.gpus + allocation.gpus)
        if any(self.others) and not self.leaving_cores and shape != Shape():
            # What is free may be spread over nodes none of which has room for such a worker.
            nodes = [list(node) for free in self._nodes.values() for node in free]
            fitting = min(fitting, take_slots(nodes, self.unit(shape), fitting))
        if fitting <= 0 and self.due:
            cores = room.cores + allocation.cores + self.due
            fitting = self.unit(shape).fitting(cores, room.gpus + allocation.gpus)
        return max(0, fitting)

    def slots_in_reach(self, shape: Shape) -> int:
        """Return the number of workers that fit beside what others hold; at least 1."""
        cores, gpus = self.others
        fitting = self.unit(shape).fitting(self.total.cores - cores, self.total.gpus - gpus)
        return min(self.max_workers, max(1, fitting))

    def free_nodes(self, occupied: int) -> int:
        """Return the number of empty nodes, if workers occupy so many."""
        # The nodes of a task job are unknown: those that share nodes are assumed to be packed well. If
        # they are not, the job in question waits inside the instance.
        total = self.total
        node_cores = math.ceil(total.cores / total.nodes)
        shared = self.task_cores - self.task_nodes * node_cores
        shared += self.others[0]
        return total.nodes - occupied - self.task_nodes - math.ceil(max(0, shared) / node_cores)

    # -- bookkeeping -------------------------------------------------------------------------------

    def count(self, allocation: Allocation, sign: int, *, task: bool) -> None:
        """Count a job that was submitted (sign 1) or that ended (-1)."""
        self.cores += sign * allocation.cores
        self.gpus += sign * allocation.gpus
        if task:
            self.task_cores += sign * allocation.cores
            self.task_nodes += sign * allocation.nodes
            self.task_jobs += sign

    def count_leaving(self, allocation: Allocation, sign: int) -> None:
        """Count a worker job that will end soon (sign 1), or that serves again or ended (-1)."""
        self.leaving_cores += sign * allocation.cores
        self.leaving_gpus += sign * allocation.gpus


def take_slots(nodes: list[list[int]], unit: WorkerUnit, slots: int) -> int:
    """Take slots from the free cores and GPUs of nodes, as many as fit; return how many."""
    taken = 0
    for node in nodes:
        fitting = max(0, min(slots - taken, unit.fitting(*node)))
        units = unit.units(fitting)
        node[0] -= units * unit.cores
        node[1] -= units * unit.gpus
        taken += fitting
    return taken
