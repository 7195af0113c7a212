"""What our jobs take of the instance, and what more would fit.

Only our own jobs count: what others run there is not known, and a job that does not fit beside them
waits inside the instance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.jobspec.resources import Resources, Shape


class Allocation(NamedTuple):
    """Cores and GPUs of a job, and how many nodes it needs for itself alone."""

    cores: int
    gpus: int = 0
    nodes: int = 0


class Allocations:
    """Sums over the jobs that were submitted and have not ended.

    Attributes
    ----------
    capacity : Capacity or None
    cores, gpus : int
        Held by all jobs.
    leaving_cores, leaving_gpus : int
        Held by worker jobs that will be gone before long.
    task_cores, task_nodes, task_jobs : int
        Cores, and whole nodes, held by task jobs; their number.
    """

    __slots__ = (
        "capacity",
        "cores",
        "gpus",
        "leaving_cores",
        "leaving_gpus",
        "task_cores",
        "task_jobs",
        "task_nodes",
    )

    def __init__(self) -> None:
        self.capacity: Capacity | None = None
        self.cores = self.gpus = 0
        self.leaving_cores = self.leaving_gpus = 0
        self.task_cores = self.task_nodes = self.task_jobs = 0

    # -- sizes -------------------------------------------------------------------------------------

    @property
    def total(self) -> Capacity:
        """The capacity, never nothing."""
        capacity = self.capacity or Capacity(1, 1, 0)
        return Capacity(max(1, capacity.nodes), max(1, capacity.cores), capacity.gpus)

    def of_task(self, resources: Resources) -> Allocation:
        """What a task's own job takes."""
        total = self.total
        nodes = resources.num_nodes or 1
        cores, gpus = resources.cores, resources.gpus
        return Allocation(
            nodes * math.ceil(total.cores / total.nodes) if cores is None else cores,
            nodes * (total.gpus // total.nodes) if gpus is None else gpus,
            nodes if resources.exclusive else 0,
        )

    def of_workers(self, shape: Shape, slots: int) -> Allocation:
        """What a job of workers takes."""
        return Allocation(shape.cores * slots, shape.gpus * slots)

    def slots_per_node(self, shape: Shape) -> int:
        """Workers that fit a node; 1 if none does, which the instance will say in its own words."""
        total = self.total
        slots = total.cores // total.nodes // shape.cores
        if shape.gpus:
            slots = min(slots, total.gpus // total.nodes // shape.gpus)
        return max(1, slots)

    def slots_in_all(self, shape: Shape) -> int:
        """Workers that fit the instance; at least 1."""
        total = self.total
        slots = total.cores // shape.cores
        if shape.gpus:
            slots = min(slots, total.gpus // shape.gpus)
        return max(1, slots)

    # -- what would fit ----------------------------------------------------------------------------

    @property
    def room(self) -> Allocation:
        """What is free, or will be before long; negative where more was promised than there is."""
        total = self.total
        return Allocation(
            total.cores - self.cores + self.leaving_cores,
            total.gpus - self.gpus + self.leaving_gpus,
        )

    @property
    def overcommitted(self) -> int:
        """Cores by which the jobs inside the instance exceed it."""
        return self.cores - self.total.cores

    def possible(self, need: Allocation) -> bool:
        """Whether it would fit if there were nothing else."""
        total = self.total
        return need.cores <= total.cores and need.gpus <= total.gpus and need.nodes <= total.nodes

    def slots_that_fit(self, shape: Shape) -> int:
        """Workers for which there is room."""
        room = self.room
        slots = room.cores // shape.cores
        if shape.gpus:
            slots = min(slots, room.gpus // shape.gpus)
        return max(0, slots)

    def free_nodes(self, occupied: int) -> int:
        """Whole nodes that are free, given how many the workers occupy."""
        # Where in the instance a task job runs is not known: those that share nodes are taken to be
        # packed well, and if they are not, the job in question waits inside the instance.
        total = self.total
        node_cores = math.ceil(total.cores / total.nodes)
        shared = self.task_cores - self.task_nodes * node_cores
        return total.nodes - occupied - self.task_nodes - math.ceil(max(0, shared) / node_cores)

    # -- bookkeeping -------------------------------------------------------------------------------

    def add(self, allocation: Allocation, *, task: bool) -> None:
        """A job was submitted (or, with a negative allocation, ended)."""
        self.cores += allocation.cores
        self.gpus += allocation.gpus
        if task:
            self.task_cores += allocation.cores
            self.task_nodes += allocation.nodes
            self.task_jobs += 1

    def remove(self, allocation: Allocation, *, task: bool) -> None:
        """A job ended."""
        self.cores -= allocation.cores
        self.gpus -= allocation.gpus
        if task:
            self.task_cores -= allocation.cores
            self.task_nodes -= allocation.nodes
            self.task_jobs -= 1

    def leaves(self, allocation: Allocation) -> None:
        """A worker job will be gone before long."""
        self.leaving_cores += allocation.cores
        self.leaving_gpus += allocation.gpus

    def stays(self, allocation: Allocation) -> None:
        """It will not after all, or it is gone."""
        self.leaving_cores -= allocation.cores
        self.leaving_gpus -= allocation.gpus
