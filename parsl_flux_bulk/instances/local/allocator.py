"""Which job of the embedded instance runs next, and on which cores. Pure; used by the broker.

Order is by urgency, then first come, first served; a job that does not fit yet keeps those behind
it waiting, so that a large one is never starved by small ones.
"""

from __future__ import annotations

import heapq

from parsl_flux_bulk.instances.local.job import Job


class Allocator:
    """The free cores and GPUs, by index."""

    def __init__(self, cores: int, gpus: int) -> None:
        self._all = (cores, gpus)
        self._cores = list(range(cores))
        self._gpus = list(range(gpus))

    def allocate(self, job: Job) -> bool:
        """Give `job` what it asks for, lowest numbers first, if that is free."""
        wanted = self._all if job.plan.exclusive else (job.plan.cores, job.plan.gpus)
        if len(self._cores) < wanted[0] or len(self._gpus) < wanted[1]:
            return False
        job.cores, self._cores = self._cores[: wanted[0]], self._cores[wanted[0] :]
        job.gpus, self._gpus = self._gpus[: wanted[1]], self._gpus[wanted[1] :]
        return True

    def free(self, job: Job) -> None:
        """Take back what `job` has."""
        self._cores = sorted(self._cores + job.cores)
        self._gpus = sorted(self._gpus + job.gpus)
        job.cores, job.gpus = [], []


class JobQueue:
    """Jobs that wait for resources. Those with urgency 0 are held: they wait to be cancelled."""

    def __init__(self) -> None:
        self._waiting: dict[int, Job] = {}
        self._order: list[tuple[int, int]] = []

    def __contains__(self, job_id: int) -> bool:
        return job_id in self._waiting

    def add(self, job: Job) -> None:
        """Let `job` wait."""
        self._waiting[job.id] = job
        if job.plan.urgency > 0:
            heapq.heappush(self._order, (-job.plan.urgency, job.id))

    def remove(self, job_id: int) -> Job | None:
        """Take a job out, if it waits."""
        return self._waiting.pop(job_id, None)

    def next(self, allocator: Allocator) -> Job | None:
        """Take out the job that is to start now, with its cores; None if none can."""
        while self._order:
            job = self._waiting.get(self._order[0][1])
            if job is not None and not allocator.allocate(job):
                return None
            heapq.heappop(self._order)
            if job is not None:
                return self._waiting.pop(job.id)
        return None
