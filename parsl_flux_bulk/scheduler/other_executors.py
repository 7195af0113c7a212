"""Equal shares of executors in one instance, where the cores are fewer than the tasks of all.

Each executor decides for itself, from what the instance tells all of them. A share is the cores that no
other program holds, divided by the number of executors; one that holds less and wants no more leaves the rest
to the others. An executor that holds less than its share submits worker jobs for the rest, which wait in the
instance (:attr:`.Allocations.due`). One that holds more drains worker jobs, as far as jobs of others wait
that would then start, and leaves room for these (:attr:`.Allocations.others`). One that holds its share does
neither. Only worker jobs count: what programs that are not executors hold is nobody's share.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

from parsl_flux_bulk.instances.base import WorkerCores
from parsl_flux_bulk.scheduler.fair_share import QUANTUM
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.messages import UsageReported
from parsl_flux_bulk.scheduler.model import TaskJob, WorkerJob
from parsl_flux_bulk.scheduler.states import WorkerJobState
from parsl_flux_bulk.scheduler.timers import Timers

STUCK_TIME = 10.0
"""Seconds for which cores are left free for a job: if it still waits, it waits for something else."""


class EqualShare(NamedTuple):
    """What workers may hold beside those of other executors.

    Attributes
    ----------
    most : int
        Cores that workers of this executor may hold.
    claimed : int
        Cores, of those that they hold or are free, that are to go to jobs of others that wait.
    due : int
        Cores that others hold, and are to leave to jobs of this executor that wait.
    """

    most: int
    claimed: int
    due: int


def equal_share(pool: int, free: int, held: int, others: Collection[WorkerCores]) -> EqualShare:
    """Compute the share of an executor.

    Parameters
    ----------
    pool : int
        Cores that are free, or that workers of executors hold.
    free : int
        Those that are free.
    held : int
        Those that workers of this executor hold.
    others : collection of WorkerCores
        The other executors.
    """
    share = _share(pool, others)
    up, down = math.ceil(share), math.floor(share)
    reach = pool - sum(other.held for other in others)
    # Not only this executor leaves cores to a job that waits: all that hold more than their share do.
    left = free + max(0, held - up) + sum(max(0, other.held - up) for other in others)
    claimed = 0
    for _, cores in sorted(job for other in others for job in other.wanted.items()):
        if claimed + cores <= left:
            claimed += cores
    most = max(up, reach - claimed)
    due = down - reach
    # A little less is not worth the end of workers.
    return EqualShare(most, max(0, reach - most), due if 4 * due >= down > 0 else 0)


def _share(pool: int, others: Collection[WorkerCores]) -> float:
    """Return the cores for each executor that wants more than it holds."""
    count = 1 + len(others)
    for held in sorted(other.held for other in others if not other.wanted):
        if held * count >= pool:
            break
        pool -= held
        count -= 1
    return pool / count


class Sharing:
    """Computes the share of an executor at each survey, and drains worker jobs that exceed it."""

    def __init__(self, timers: Timers, lifecycle: Lifecycle) -> None:
        self._timers = timers
        self._lifecycle = lifecycle
        self._foreign: dict[int, int] = {}
        self._fits_since: dict[int, dict[int, float]] = {}

    def share(
        self, event: UsageReported, holding: Iterable[WorkerJob | TaskJob], held: int, free: int
    ) -> EqualShare:
        """Return the share in a part of the instance.

        Parameters
        ----------
        holding : iterable of WorkerJob or TaskJob
            Those of this executor that hold resources.
        held : int
            Cores that others hold.
        free : int
            Cores that are free.
        """
        cores: dict[type, int] = {WorkerJob: 0, TaskJob: 0}
        for job in holding:
            cores[type(job)] += job.allocation.cores
        foreign = max(0, held - sum(other.held for other in event.executors))
        # A job on its way out looks like one of another program for a moment: two surveys must agree.
        before, self._foreign[event.scope] = self._foreign.get(event.scope, foreign), foreign
        pool = event.capacity.cores - min(foreign, before) - cores[TaskJob]
        return equal_share(max(0, pool), free, cores[WorkerJob], self._others(event, free))

    def _others(self, event: UsageReported, free: int) -> list[WorkerCores]:
        """Return the other executors, without the jobs that do not start although enough is free."""
        now = self._timers.now
        before = self._fits_since.get(event.scope, {})
        fits_since: dict[int, float] = {}
        others = []
        for other in event.executors:
            wanted: dict[int, int] = {}
            for job, cores in other.wanted.items():
                since = before.get(job, now)
                stuck = now - since >= STUCK_TIME
                if stuck or cores <= free:
                    fits_since[job] = since
                if not stuck:
                    wanted[job] = cores
            if other.held or wanted:
                others.append(WorkerCores(other.held, wanted))
        self._fits_since[event.scope] = fits_since
        return others

    def drain(self, event: UsageReported, share: EqualShare) -> None:
        """Drain worker jobs down to the share, if jobs of other executors wait for the cores."""
        if not share.claimed:
            return
        holding = [job for job in event.holding if isinstance(job, WorkerJob) and job.available]
        waiting = [job for job in event.waiting if isinstance(job, WorkerJob) and job.available]
        cores = sum(job.allocation.cores for job in (*holding, *waiting))
        serving = [job for job in holding if job.state is WorkerJobState.SERVING]
        reason = (
            f"worker jobs of other executors wait; those of this one have {cores} cores, not {share.most}"
        )
        for job in jobs_to_drain(waiting, serving, cores - share.most, self._timers.now):
            self._lifecycle.drain(job, reason)


def jobs_to_drain(
    waiting: Collection[WorkerJob], serving: Collection[WorkerJob], excess: int, now: float
) -> list[WorkerJob]:
    """Choose jobs whose end leaves so many cores to others; of each shape, workers of one unit remain.

    Jobs that wait in the instance come first, then small ones, then those whose tasks began last. A job that
    just started is left alone.
    """
    jobs = [*waiting, *(job for job in serving if now >= job.since + QUANTUM)]
    jobs.sort(key=lambda job: (not job.starting, job.allocation.cores, -_begin_of_tasks(job)))
    left = {job.group: job.group.slots for job in jobs}
    chosen: dict[WorkerJob, int] = {}
    for job in jobs:
        if excess <= 0:
            break
        # A smaller job replaces a group's last one.
        last = left[job.group] - job.live < job.unit.workers and job.group.outstanding > 0
        cores = job.allocation.cores - (job.unit.cores if last else 0)
        if cores > 0:
            left[job.group] -= job.live
            chosen[job] = cores
            excess -= cores
    for job, cores in reversed(list(chosen.items())):
        # Small jobs were chosen first; larger ones chosen later may have made some unnecessary.
        if excess + cores <= 0:
            del chosen[job]
            excess += cores
    return list(chosen)


def _begin_of_tasks(job: WorkerJob) -> float:
    """Return since when the longest of the running tasks has been running; infinity if none does."""
    return min((worker.mark for worker in job.workers if worker.queue), default=math.inf)
