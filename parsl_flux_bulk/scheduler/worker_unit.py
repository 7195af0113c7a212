"""The smallest worker job of a shape: workers that share cores or a GPU are allocated together.

Flux allocates whole cores and GPUs. Two workers of half a core are one unit: a core, with two workers on it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from parsl_flux_bulk.jobspec.resources import Shape

_EPSILON = 1e-9


class WorkerUnit(NamedTuple):
    """Workers on one node, and the whole cores and GPUs that they share."""

    workers: int = 1
    cores: int = 1
    gpus: int = 0

    def units(self, workers: int) -> int:
        """Return the number of units that so many workers need."""
        return -(-workers // self.workers)

    def fitting(self, cores: int, gpus: int) -> int:
        """Return the number of workers that fit so many cores and GPUs of a node."""
        units = cores // self.cores
        return self.workers * (min(units, gpus // self.gpus) if self.gpus else units)


def worker_unit(
    shape: Shape, node_cores: int, node_gpus: int, max_workers_per_node: int | None = None
) -> WorkerUnit:
    """Return the unit of a shape, on nodes of so many cores and GPUs.

    As many workers as possible fit a node, and no more than `max_workers_per_node`: with that bound, each
    worker gets its part of the node's cores. Where the node has too little, the unit does not fit: the
    instance reports the error.
    """
    most = math.floor(node_cores / shape.cores + _EPSILON)
    per_gpu = math.floor(1 / shape.gpus + _EPSILON) if 0 < shape.gpus < 1 else 0
    if per_gpu:
        most = min(most, per_gpu * max(1, node_gpus))
    elif shape.gpus:
        most = min(most, node_gpus // int(shape.gpus))
    most = max(1, most)
    cores: float = shape.cores
    if max_workers_per_node is not None and max_workers_per_node < most:
        most = max_workers_per_node
        cores = node_cores / most
    if per_gpu:
        workers = max(1, most // max(1, node_gpus))
        return WorkerUnit(workers, _whole(workers * cores), 1)
    single = WorkerUnit(1, _whole(cores), int(shape.gpus))
    if cores == single.cores or single.fitting(node_cores, node_gpus) >= most:
        return single
    divisor = math.gcd(node_cores, most)
    workers = most // divisor
    return WorkerUnit(workers, node_cores // divisor, workers * single.gpus)


def _whole(cores: float) -> int:
    return max(1, math.ceil(cores - _EPSILON))
