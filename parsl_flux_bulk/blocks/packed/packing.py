"""How many node jobs are started, and with how many cores each. Knows neither threads nor I/O.

A Flux job cannot shrink. So node jobs are small where the size of the packed jobs is known: as the last
packed jobs end, one node job after another becomes empty, ends, and gives its cores back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NODE_JOBS = 8
"""Node jobs into which the free cores of an instance are divided, at most, if it has fewer nodes: a long job
holds an eighth of the cores. Each costs the instance the start of a job, some 40 ms."""

LEAST_CORES = 4
"""Cores of a divided node job, at least: its two processes have 35 MB, and share a core with its jobs."""


class Packing(NamedTuple):
    """What is known of the jobs that will be packed.

    Attributes
    ----------
    cores, gpus : int or None
        What each of them needs, at most; None if that is not known.
    jobs : int or None
        How many will be submitted, if that is known.
    keeps_output : bool
        Whether anybody may ask for output that no file has, after the end of a job.
    """

    cores: int | None = None
    gpus: int | None = None
    jobs: int | None = None
    keeps_output: bool = True

    @property
    def cores_needed(self) -> int | None:
        """Cores that all of them need, if that is known."""
        return None if self.cores is None or self.jobs is None else self.cores * self.jobs


UNKNOWN = Packing()


def node_job_sizes(
    free: Sequence[tuple[int, int]], packing: Packing, cores_needed: int | None
) -> list[tuple[int, int]]:
    """Divide what is free between node jobs.

    Parameters
    ----------
    free : sequence of (int, int)
        Free cores and GPUs of each node.
    packing : Packing
        If the size of the jobs is not known, each node job gets all that is free on its node.
    cores_needed : int or None
        Cores that jobs can use, if that is known: no more are taken.

    Returns
    -------
    list of (int, int)
        Cores and GPUs of each node job. Large ones first: a small one would also fit their nodes.
    """
    nodes = sorted((node for node in free if node[0]), reverse=True)
    if packing.cores is None or packing.gpus is None:
        return nodes
    # Cores that are too few for one more job stay free.
    usable = [
        (_whole(cores, packing.cores), gpus)
        for cores, gpus in nodes
        if cores >= packing.cores and gpus >= packing.gpus
    ]
    left = sum(cores for cores, _ in usable)
    if cores_needed is not None:
        left = min(left, _whole(cores_needed + packing.cores - 1, packing.cores))
    part = _whole(max(LEAST_CORES, left // NODE_JOBS) + packing.cores - 1, packing.cores)
    sizes = []
    for cores, gpus in usable:
        while cores and left:
            # GPUs are not divided: a job may need all of them.
            size = min(cores, left, cores if packing.gpus else part)
            sizes.append((size, gpus if packing.gpus else 0))
            left -= size
            cores = 0 if packing.gpus else cores - size
    return sorted(sizes, reverse=True)


def _whole(cores: int, each: int) -> int:
    return cores - cores % each
