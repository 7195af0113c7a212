"""How many worker jobs and task jobs there should be: which to submit, which to drain.

A job is submitted when there is room for it beside the jobs submitted before. The allocation of a worker job
that is about to end counts as room: what a job waits for inside the instance will be free soon. To make
room, worker jobs are *drained*: they get no more tasks, and end with those that run.

*Task jobs and workers* have fair shares (:mod:`.fair_share`). While task jobs have priority, they drain
worker jobs that are in their way; while workers have it, task jobs are submitted only where workers need
nothing. Task jobs start in the order in which they came.

*Shapes.* Each gets cores in proportion to those that its tasks ask for, and at least one worker. A shape
that has much less than its share drains worker jobs of those that have more; one without any worker drains
any: where there are more shapes than cores, they alternate. A job that starts is left alone for a `QUANTUM`,
unless it is idle.

*Growth.* A first job starts almost at once, with a worker for every task there is by then. `gather_time`
lets the first tasks of a flood share one job instead of two; a single task never blocks more than its own
cores. Further workers follow when demand at least doubles, or lasts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from parsl_flux_bulk.scheduler.capacity import Allocation
from parsl_flux_bulk.scheduler.fair_share import QUANTUM, FairShare
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.model import NO_LIMIT, TaskJob, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.states import PeerState, TaskState, WorkerJobState
from parsl_flux_bulk.scheduler.story import Story
from parsl_flux_bulk.scheduler.timers import Timers

START_COST = 0.05
"""Seconds of waiting work for which a further worker is worth starting."""

_AHEAD = 2
"""Task jobs that may wait inside the instance, if nothing else waits and their durations are unknown."""


class Autoscaler:
    """Decides which jobs to submit and which to drain.

    Parameters
    ----------
    max_active_jobs : int
        Twice as many task jobs may be submitted and not ended.
    gather_time : float
        Seconds that a shape's first job waits for more tasks.
    """

    def __init__(
        self, lifecycle: Lifecycle, timers: Timers, story: Story, *, max_active_jobs: int, gather_time: float
    ) -> None:
        self._lifecycle = lifecycle
        self._allocations = lifecycle.allocations
        self._timers = timers
        self._story = story
        self._max_task_jobs = 2 * max_active_jobs
        self._gather_time = gather_time
        self._check_at: float | None = None
        self._fair_share = FairShare()
        self._ends = [0, 0]
        self._ends_second = 0

    def scale(self, now: float) -> None:
        """Bring the jobs in line with the tasks."""
        lifecycle = self._lifecycle
        if self._check_at is not None and now >= self._check_at:
            self._check_at = None
            lifecycle.changed = True
        if not lifecycle.changed or self._allocations.capacity is None:
            return
        lifecycle.changed = False
        self._note_begun(now)
        if lifecycle.held and self._task_jobs_first(now):
            self._submit_task_jobs(now, may_drain=True)
        self._keep_unneeded()
        self._grow(now)
        if lifecycle.held:
            self._submit_task_jobs(now, may_drain=False)

    def task_job_ended(self, job: TaskJob, now: float) -> None:
        """Count what task jobs used, and how many end in a second."""
        if job.began is not None and self._waiting_groups():
            share = min(1.0, job.allocation.cores / self._allocations.total.cores)
            self._fair_share.task_job_used((now - job.began) * share)
        second = int(now)
        if second != self._ends_second:
            self._ends = [self._ends[1] if second == self._ends_second + 1 else 0, 0]
            self._ends_second = second
        self._ends[1] += 1

    def _check(self, when: float | None) -> None:
        """Decide again at that time, even if nothing happens."""
        if when is not None and (self._check_at is None or when < self._check_at):
            self._check_at = when
            self._timers.wake(when)

    def _waiting_groups(self) -> list[WorkerGroup]:
        return [group for group in self._lifecycle.groups.values() if group.waiting]

    # -- task jobs ---------------------------------------------------------------------------------

    def _task_jobs_first(self, now: float) -> bool:
        """Tell whether task jobs may take what workers have or want."""
        waiting = self._waiting_groups()
        if not waiting:
            self._fair_share.reset()
            return True
        first = self._fair_share.task_jobs_first(
            now,
            served=any(group.workers for group in waiting),
            deprived=any(map(self._deprived, waiting)),
        )
        self._check(self._fair_share.check_at)
        return first

    def _deprived(self, group: WorkerGroup) -> bool:
        """Tell whether a group would have more workers if it had the instance for itself."""
        most = self._allocations.slots_in_reach(group.shape)
        return group.waiting > 0 and group.slots < min(group.outstanding, most)

    def _submit_task_jobs(self, now: float, *, may_drain: bool) -> None:
        held = self._lifecycle.held
        while held:
            job = held[0]
            if job.task.state is not TaskState.PENDING:
                held.popleft()
                continue
            if len(self._lifecycle.task_jobs) >= self._max_task_jobs:
                self._story.waits(None, f"{self._max_task_jobs} task jobs are submitted, no more are allowed")
                return
            job.allocation = need = self._allocations.of_task(job.task.resources)
            deprived = any(map(self._deprived, self._waiting_groups()))
            if self._allocations.possible(need):  # otherwise the instance reports the error
                if not may_drain and deprived:
                    self._story.waits(None, "tasks that wait for workers have priority now")
                    return
                if not self._fits(need) and not self._may_wait_inside():
                    if not (may_drain and self._make_room(need)):
                        self._story.waits(
                            None, "no room for the next task job", partial(self._describe, need)
                        )
                        return
                    deprived = True
            if deprived:
                self._fair_share.task_job_competes(now)
                self._check(self._fair_share.check_at)
            held.popleft()
            self._lifecycle.submit_task_job(job)

    def _describe(self, need: Allocation) -> str:
        room = self._allocations.room
        return (
            f"needed: {need.cores} cores, {need.gpus} GPUs, {need.nodes} whole nodes; "
            f"free: {max(0, room.cores)} cores, {max(0, room.gpus)} GPUs"
        )

    def _fits(self, need: Allocation) -> bool:
        if not self._allocations.has_room(need):
            return False
        return not need.nodes or need.nodes <= self._free_nodes(self._available())

    def _available(self) -> list[WorkerJob]:
        return [job for group in self._lifecycle.groups.values() for job in group.jobs if job.available]

    def _free_nodes(self, jobs: Iterable[WorkerJob]) -> int:
        """Return the number of empty nodes, if there were only these worker jobs."""
        return self._allocations.free_nodes(len(self._by_node(jobs)))

    def _by_node(self, jobs: Iterable[WorkerJob]) -> dict[object, list[WorkerJob]]:
        """Return the jobs on each node that has any; a node that is ambiguous counts as several."""
        nodes: dict[object, list[WorkerJob]] = {}
        for job in jobs:
            for node in self._lifecycle.nodes_of(job):
                nodes.setdefault(node, []).append(job)
        return nodes

    def _may_wait_inside(self) -> bool:
        """Tell whether a task job may be submitted without room: as many as end in a second may."""
        # Those inside the instance are ahead of any worker that is wanted later.
        if any(group.jobs or group.waiting for group in self._lifecycle.groups.values()):
            return False
        allocations = self._allocations
        if not allocations.task_cores:
            return True
        behind = allocations.overcommitted * allocations.task_jobs / allocations.task_cores
        return behind < max(_AHEAD, sum(self._ends))

    def _make_room(self, need: Allocation) -> bool:
        """Drain worker jobs so that `need` fits; drain none if it would not fit then either."""
        room = self._allocations.room
        cores, gpus = need.cores - room.cores, need.gpus - room.gpus
        staying = dict.fromkeys(self._available())
        chosen: list[WorkerJob] = []

        def choose(job: WorkerJob) -> None:
            nonlocal cores, gpus
            del staying[job]
            chosen.append(job)
            cores -= job.allocation.cores
            gpus -= job.allocation.gpus

        if need.nodes:
            by_node = self._by_node(staying)
            for jobs in sorted(by_node.values(), key=lambda jobs: sum(map(_price, jobs))):
                if need.nodes <= self._free_nodes(staying):
                    break
                for job in jobs:
                    if job in staying:
                        choose(job)
            if need.nodes > self._free_nodes(staying):
                return False
        for job in sorted(staying, key=_price):
            if cores <= 0 and gpus <= 0:
                break
            if cores > 0 or job.allocation.gpus:
                choose(job)
        if cores > 0 or gpus > 0:
            return False
        for job in reversed(chosen):
            # Small jobs were chosen first; larger ones chosen later may have made some unnecessary.
            if not need.nodes and cores + job.allocation.cores <= 0 and gpus + job.allocation.gpus <= 0:
                cores += job.allocation.cores
                gpus += job.allocation.gpus
            else:
                self._lifecycle.drain(job, "its cores are needed by a larger task")
        return True

    def _note_begun(self, now: float) -> None:
        if self._lifecycle.task_jobs and self._allocations.overcommitted <= 0:
            # Newest first: all before the first that is known to have begun have begun as well.
            for job in reversed(self._lifecycle.task_jobs):
                if job.began is not None:
                    break
                job.began = now

    def _keep_unneeded(self) -> None:
        """Let draining jobs serve again where everything submitted fits beside them."""
        allocations = self._allocations
        if not allocations.leaving_cores or allocations.overcommitted > 0:
            return
        if allocations.gpus > allocations.total.gpus:
            return
        draining = [job for group in self._waiting_groups() for job in group.jobs if _can_keep(job)]
        if not draining:
            return
        if allocations.task_nodes:
            jobs = [job for group in self._lifecycle.groups.values() for job in group.jobs]
            if self._free_nodes(jobs) < 0:
                return
        for job in draining:
            self._lifecycle.keep(job)

    # -- workers -----------------------------------------------------------------------------------

    def _grow(self, now: float) -> None:
        waiting = self._waiting_groups()
        if not waiting:
            return
        shares = self._shares()
        # Groups without workers first.
        for group in sorted(waiting, key=lambda group: group.slots > 0):
            missing = self._wanted(group, shares[group]) - group.slots
            if not group.slots:
                group.stopped = False
            if missing <= 0 or group.stopped:
                group.short_since = None
                if group.stopped:
                    self._story.waits(group, "no further workers: the last attempts to start some failed")
            elif self._is_worth_it(group, missing, now):
                missing = self._start(group, missing)
                if not missing or self._allocations.slots_that_fit(group.shape):
                    continue
                if self._take_from_others(group, missing, shares, now):
                    self._start(group, missing)
                    self._lifecycle.changed = True
                else:
                    if self._waits_for_others(group):
                        # Inside the instance, it starts as soon as there is room.
                        self._lifecycle.submit_worker_job(group, 1)
                    self._lifecycle.unsettled = True
                    need = self._allocations.of_workers(group.shape, missing)
                    self._story.waits(group, "no room for further workers", partial(self._describe, need))

    def _waits_for_others(self, group: WorkerGroup) -> bool:
        """Tell whether only jobs of other programs keep a group from its first worker."""
        allocations = self._allocations
        room, (cores, gpus) = allocations.room, allocations.others
        unit = allocations.unit(group.shape)
        return (
            not group.slots
            and any(allocations.others)
            and room.cores + cores >= unit.cores
            and room.gpus + gpus >= unit.gpus
        )

    def _shares(self) -> dict[WorkerGroup, float]:
        """Return the cores of each group, in proportion to those that its tasks ask for."""
        allocations = self._allocations
        most = max(
            0, allocations.total.cores - allocations.task_cores - allocations.others[0] + allocations.due
        )
        demands = {
            group: min(group.outstanding, allocations.slots_in_total(group.shape))
            * allocations.cores_each(group.shape)
            for group in self._lifecycle.groups.values()
        }
        total = sum(demands.values())
        if total <= most:
            return demands
        return {group: most * demand / total for group, demand in demands.items()}

    def _wanted(self, group: WorkerGroup, share: float) -> int:
        most = self._allocations.slots_in_total(group.shape)
        fair = int(share / self._allocations.cores_each(group.shape) + 1e-9)
        return min(group.outstanding, most, max(1, fair))

    def _is_worth_it(self, group: WorkerGroup, missing: int, now: float) -> bool:
        """Tell whether to start more workers now; if not, the next decision is scheduled."""
        if group.short_since is None:
            group.short_since = now
        if group.slots:
            # Doubling each time keeps the number of jobs small; so does waiting for those that are starting.
            if missing < group.slots and any(job.starting for job in group.jobs):
                return False
            if group.workers and group.service_time.mean:
                work = group.waiting * group.service_time.mean / group.workers
                due = group.short_since + START_COST
                if work < START_COST and now < due:
                    self._check(due)
                    return False
        due = group.short_since + self._gather_time
        if group.slots + missing < self._allocations.slots_in_total(group.shape) and now < due:
            self._check(due)
            return False
        return True

    def _start(self, group: WorkerGroup, missing: int) -> int:
        """Submit jobs for as many workers as there is room for; return how many are still missing."""
        allocations = self._allocations
        while missing > 0:
            slots = min(missing, group.slot_limit, allocations.slots_per_node(group.shape))
            fitting = allocations.slots_that_fit(group.shape)
            if not allocations.possible(allocations.of_workers(group.shape, 1)):
                fitting = 0 if group.slots else 1  # the instance reports the error
            slots = min(allocations.whole_units(group.shape, slots, group.slots), fitting)
            if slots < 1:
                break
            self._story.proceeds(group)
            self._lifecycle.submit_worker_job(group, slots)
            missing -= slots
            group.short_since = None
            if group.slot_limit < NO_LIMIT and not group.workers:
                break  # a job was refused before: one at a time
        return max(0, missing)

    def _take_from_others(
        self, group: WorkerGroup, missing: int, shares: dict[WorkerGroup, float], now: float
    ) -> bool:
        """Drain jobs of other groups, if that is due; return whether there is room for a worker now."""
        starving = not group.slots
        if not starving and missing * 4 < group.slots + missing:
            return False
        cores_each, unit = self._allocations.cores_each, self._allocations.unit(group.shape)
        surplus = {
            other: other.slots * cores_each(other.shape) - max(share, cores_each(other.shape))
            for other, share in shares.items()
        }
        victims: list[WorkerJob] = []
        later: list[float] = []
        room = self._allocations.room
        cores, gpus = unit.cores - room.cores, unit.gpus - room.gpus
        others = [job for job in self._available() if job.group is not group]
        for job in sorted(others, key=lambda job: (job.busy > 0, -surplus[job.group], job.allocation)):
            if cores <= 0 and gpus <= 0:
                break
            other = job.group
            useless = (cores <= 0 or not job.allocation.cores) and (gpus <= 0 or not job.allocation.gpus)
            if useless:
                continue
            idle = not job.busy and not other.waiting and not job.starting
            # To replace a job that has not even started again and again would help nobody.
            due = job.since + (10 * QUANTUM if job.starting else QUANTUM)
            if idle or (now >= due and (starving or surplus[other] > 0)):
                victims.append(job)
                surplus[other] -= job.allocation.cores
                cores -= job.allocation.cores
                gpus -= job.allocation.gpus
            elif starving or surplus[other] > 0:
                later.append(due)
        if cores > 0 or gpus > 0 or not victims:
            # Without candidates: the tasks of the other groups may be fewer after a QUANTUM.
            self._check(min(later, default=now + QUANTUM))
            return False
        for job in victims:
            self._lifecycle.drain(job, "its cores are needed by tasks of another shape")
        return True


def _can_keep(job: WorkerJob) -> bool:
    """Tell whether a draining job can serve again."""
    return job.state is WorkerJobState.DRAINING and any(
        peer.state is PeerState.CONNECTED for peer in job.peers.values()
    )


def _price(job: WorkerJob) -> int:
    """Return the cost of draining a job: running tasks delay it, and its cores must be replaced."""
    return 1000 * job.busy + job.allocation.cores
