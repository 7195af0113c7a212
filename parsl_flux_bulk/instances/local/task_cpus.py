"""Which of a job's cores and GPUs each of its tasks may use. Runs in the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def cpus_of_task(affinity: str, cores: Sequence[Sequence[int]], rank: int, size: int) -> set[int] | None:
    """Return the CPUs that task `rank` of `size` is pinned to; None for all: so for a core without CPUs.

    Parameters
    ----------
    affinity : str
        As in :class:`JobPlan`.
    cores : sequence
        For each core of the job, its CPUs.
    """
    if affinity == "off":
        return None
    mine = share(cores, rank, size) if affinity == "per-task" else cores
    if not all(mine):
        return None
    return {cpu for core in mine for cpu in core}


def gpu_variables(affinity: str, gpus: Sequence[str], rank: int, size: int) -> dict[str, str]:
    """Return the variables that show task `rank` of `size` its GPUs."""
    if affinity == "off":
        return {}
    mine = share(gpus, rank, size) if affinity == "per-task" else gpus
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(mine) or "-1"}


def share(items: Sequence[T], rank: int, size: int) -> Sequence[T]:
    """Return what task `rank` of `size` gets: a run of items, or one that several tasks share."""
    if size >= len(items):
        return [items[rank % len(items)]] if items else []
    return items[rank * len(items) // size : (rank + 1) * len(items) // size]
