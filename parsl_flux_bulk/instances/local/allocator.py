"""Which job of the embedded instance starts next, and on which cores. Pure; used by the server.

The order is by urgency, then first come, first served. A job that does not fit yet keeps those
behind it waiting, so that small jobs never starve a large one.
"""

from __future__ import annotations

import heapq

from parsl_flux_bulk.instances.local.job import LocalJob


class Allocator:
    """The free cores and GPUs, by index."""

    def __init__(self, cores: int, gpus: int) -> None:
        self._all = (cores, gpus)
        self._cores = list(range(cores))
        self._gpus = list(range(gpus))

    def allocate(self, job: LocalJob) -> bool:
        """Give `job` the cores and GPUs that it requests, lowest numbers first, if so many are free."""
        cores, gpus = self._all if job.plan.exclusive else (job.plan.cores, job.plan.gpus)
        if len(self._cores) < cores or len(self._gpus) < gpus:
            return False
        job.cores, self._cores = self._cores[:cores], self._cores[cores:]
        job.gpus, self._gpus = self._gpus[:gpus], self._gpus[gpus:]
        return True

    def free(self, job: LocalJob) -> None:
        """Take back the cores and GPUs of `job`."""
        self._cores = sorted(self._cores + job.cores)
        self._gpus = sorted(self._gpus + job.gpus)
        job.cores, job.gpus = [], []


class JobQueue:
    """Jobs that wait for resources. Those with urgency 0 are held: only `remove` takes them out."""

    def __init__(self) -> None:
        self._waiting: dict[int, LocalJob] = {}
        self._order: list[tuple[int, int]] = []

    def __contains__(self, job_id: int) -> bool:
        return job_id in self._waiting

    def __bool__(self) -> bool:
        """Whether a job waits, held ones apart."""
        return bool(self._order)

    def add(self, job: LocalJob) -> None:
        """Enqueue `job`."""
        self._waiting[job.id] = job
        if job.plan.urgency > 0:
            heapq.heappush(self._order, (-job.plan.urgency, job.id))

    def remove(self, job_id: int) -> LocalJob | None:
        """Take a job out, if it waits."""
        return self._waiting.pop(job_id, None)

    def next(self, allocator: Allocator) -> LocalJob | None:
        """Take out the job that is to start now, with its cores; None if none can."""
        while self._order:
            job = self._waiting.get(self._order[0][1])
            if job is not None and not allocator.allocate(job):
                return None
            heapq.heappop(self._order)
            if job is not None:
                return self._waiting.pop(job.id)
        return None
