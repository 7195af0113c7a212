"""Which jobs there should be: task jobs against workers, and one shape against another.

A job is submitted when there is room for it beside those that were submitted before, counting as room
what leaving worker jobs hold; so what a job waits for inside the instance is already on its way out.
To make room, worker jobs are *drained*: they get no more tasks, and end with those that they run.

*Task jobs against workers.* They take turns (:mod:`.turns`). In theirs, task jobs drain what stands in
their way; in the workers', they are submitted only where workers want nothing. They stay in the order
in which they came.

*One shape against another.* Each gets cores in proportion to those that its tasks ask for, and one
worker at least. One that has much less than its share drains those that have more; one that has no
worker at all drains any: where there are more shapes than cores they take turns. But whatever starts
gets a `QUANTUM`, unless it is idle.

*How many, how soon.* A first job starts almost at once, with a worker for every task there is by then;
`gather_time` lets the first tasks of a flood come together in one job instead of two, and yet a single
task never blocks more than its own cores. More follow as demand at least doubles, or lasts.
"""

from __future__ import annotations

from collections.abc import Iterable

from parsl_flux_bulk.scheduler.capacity import Allocation
from parsl_flux_bulk.scheduler.fair_share import QUANTUM, FairShare
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.model import NO_LIMIT, TaskJob, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.timers import Timers

START_COST = 0.05
"""Seconds of waiting work for which a further worker is worth starting."""

_ADVANCE = 2
"""Task jobs that may wait inside the instance, where nobody else waits and how short they are is unknown."""


class Autoscaler:
    """Decides which jobs to submit and which to drain.

    Parameters
    ----------
    max_active_jobs : int
        Twice as many task jobs may be submitted and not ended.
    gather_time : float
        Seconds that a shape's first job waits for more tasks to come.
    """

    def __init__(
        self, lifecycle: Lifecycle, timers: Timers, *, max_active_jobs: int, gather_time: float
    ) -> None:
        self._lifecycle = lifecycle
        self._allocations = lifecycle.allocations
        self._timers = timers
        self._max_task_jobs = 2 * max_active_jobs
        self._gather_time = gather_time
        self._look_at: float | None = None
        self._turns = FairShare()
        self._ends = [0, 0]
        self._ends_second = 0

    def plan(self, now: float) -> None:
        """Bring the jobs in line with what there is to do."""
        lifecycle = self._lifecycle
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            lifecycle.changed = True
        if not lifecycle.changed or self._allocations.capacity is None:
            return
        lifecycle.changed = False
        self._note_begun(now)
        if lifecycle.held and self._task_jobs_first(now):
            self._submit_task_jobs(now, may_drain=True)
        self._keep_what_is_not_needed_elsewhere()
        self._grow(now)
        if lifecycle.held:
            self._submit_task_jobs(now, may_drain=False)

    def task_job_ended(self, job: TaskJob, now: float) -> None:
        """Keep account of what task jobs had, and of how many end in a second."""
        if job.began is not None and self._crews_that_wait():
            self._turns.had(
                (now - job.began) * min(1.0, job.allocation.cores / self._allocations.total.cores)
            )
        second = int(now)
        if second != self._ends_second:
            self._ends = [self._ends[1] if second == self._ends_second + 1 else 0, 0]
            self._ends_second = second
        self._ends[1] += 1

    def _look(self, when: float) -> None:
        """Plan again then, whatever happens."""
        if self._look_at is None or when < self._look_at:
            self._look_at = when
            self._timers.at(when, lambda _: None)

    def _crews_that_wait(self) -> list[WorkerGroup]:
        return [group for group in self._lifecycle.groups.values() if group.waiting]

    # -- task jobs ---------------------------------------------------------------------------------

    def _task_jobs_first(self, now: float) -> bool:
        """Whether task jobs may take what workers have or want."""
        waiting = self._crews_that_wait()
        if not waiting:
            self._turns.end()
            return True
        first = self._turns.task_jobs_first(
            now,
            served=any(group.workers for group in waiting),
            deprived=any(map(self._deprived, waiting)),
        )
        if self._turns.look_at is not None:
            self._look(self._turns.look_at)
        return first

    def _deprived(self, group: WorkerGroup) -> bool:
        """Whether a group would have more workers if the instance were its own."""
        most = self._allocations.slots_in_all(group.shape)
        return group.waiting > 0 and group.slots < min(group.outstanding, most)

    def _submit_task_jobs(self, now: float, *, may_drain: bool) -> None:
        held = self._lifecycle.held
        while held and len(self._lifecycle.task_jobs) < self._max_task_jobs:
            job = held[0]
            if job.task.state:
                held.popleft()
                continue
            job.allocation = need = self._allocations.of_task(job.task.resources)
            deprived = any(map(self._deprived, self._crews_that_wait()))
            if self._allocations.possible(need):  # else the instance says why not
                if not may_drain and deprived:
                    return
                if not self._fits(need) and not self._may_wait_inside():
                    if not (may_drain and self._make_room(need)):
                        return
                    deprived = True
            if deprived:
                self._turns.pressing(now)
                if self._turns.look_at is not None:
                    self._look(self._turns.look_at)
            held.popleft()
            self._lifecycle.launch_task(job)

    def _fits(self, need: Allocation) -> bool:
        room = self._allocations.room
        if need.cores > room.cores or need.gpus > room.gpus:
            return False
        return not need.nodes or need.nodes <= self._allocations.free_nodes(
            len(self._by_node(self._staying()))
        )

    def _staying(self) -> list[WorkerJob]:
        """Worker jobs that are not leaving."""
        return [job for group in self._lifecycle.groups.values() for job in group.jobs if not job.leaving]

    def _by_node(self, jobs: Iterable[WorkerJob]) -> dict[object, list[WorkerJob]]:
        """The jobs on each node that has any; what is not known to be one node counts as several."""
        nodes: dict[object, list[WorkerJob]] = {}
        for job in jobs:
            for node in self._lifecycle.nodes_of(job):
                nodes.setdefault(node, []).append(job)
        return nodes

    def _may_wait_inside(self) -> bool:
        """Whether a task job may be submitted though others are in its way: so as many as end in a second."""
        # Those inside the instance are ahead of any worker that is wanted later.
        if any(group.jobs or group.waiting for group in self._lifecycle.groups.values()):
            return False
        allocations = self._allocations
        if not allocations.task_cores:
            return True
        behind = allocations.overcommitted * allocations.task_jobs / allocations.task_cores
        return behind < max(_ADVANCE, sum(self._ends))

    def _make_room(self, need: Allocation) -> bool:
        """Drain worker jobs so that `need` fits; none at all if it would not then either."""
        room = self._allocations.room
        cores, gpus = need.cores - room.cores, need.gpus - room.gpus
        staying = dict.fromkeys(self._staying())
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
                if need.nodes <= self._allocations.free_nodes(len(self._by_node(staying))):
                    break
                for job in jobs:
                    if job in staying:
                        choose(job)
            if need.nodes > self._allocations.free_nodes(len(self._by_node(staying))):
                return False
        for job in sorted(staying, key=_price):
            if cores <= 0 and gpus <= 0:
                break
            if cores > 0 or job.allocation.gpus:
                choose(job)
        if cores > 0 or gpus > 0:
            return False
        for job in reversed(chosen):
            # Small ones were taken first; those that came later may have made some unnecessary.
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

    def _keep_what_is_not_needed_elsewhere(self) -> None:
        """Stop draining where everything submitted fits as it is."""
        allocations = self._allocations
        if (
            not allocations.leaving_cores
            or allocations.overcommitted > 0
            or allocations.gpus > allocations.total.gpus
        ):
            return
        groups = self._crews_that_wait()
        leaving = [job for group in groups for job in group.jobs if self._lifecycle.can_keep(job)]
        if not leaving:
            return
        if allocations.task_nodes:
            jobs = [job for group in self._lifecycle.groups.values() for job in group.jobs]
            if allocations.free_nodes(len(self._by_node(jobs))) < 0:
                return
        for job in leaving:
            self._lifecycle.keep(job)

    # -- workers -----------------------------------------------------------------------------------

    def _grow(self, now: float) -> None:
        waiting = self._crews_that_wait()
        if not waiting:
            return
        shares = self._shares()
        # Those who have nothing first.
        for group in sorted(waiting, key=lambda group: group.slots > 0):
            missing = self._wanted(group, shares[group]) - group.slots
            if not group.slots:
                group.stopped = False
            if missing <= 0 or group.stopped:
                group.wished = None
            elif self._is_worth_it(group, missing, now):
                missing = self._start(group, missing)
                if not missing or self._allocations.slots_that_fit(group.shape):
                    continue
                if self._take_from_others(group, missing, shares, now):
                    self._start(group, missing)
                    self._lifecycle.changed = True

    def _shares(self) -> dict[WorkerGroup, float]:
        """Cores for each group, in proportion to what its tasks ask for."""
        allocations = self._allocations
        most = max(0, allocations.total.cores - allocations.task_cores)
        demands = {
            group: float(min(group.outstanding, allocations.slots_in_all(group.shape)) * group.shape.cores)
            for group in self._lifecycle.groups.values()
        }
        total = sum(demands.values())
        if total <= most:
            return demands
        return {group: most * demand / total for group, demand in demands.items()}

    def _wanted(self, group: WorkerGroup, share: float) -> int:
        most = self._allocations.slots_in_all(group.shape)
        return min(group.outstanding, most, max(1, int(share / group.shape.cores + 1e-9)))

    def _is_worth_it(self, group: WorkerGroup, missing: int, now: float) -> bool:
        """Whether to start more workers now; if not, it has been seen to that we look again."""
        if group.wished is None:
            group.wished = now
        if group.slots:
            # A doubling each time keeps the jobs few; so does waiting for those that are starting.
            if missing < group.slots and any(job.starting for job in group.jobs):
                return False
            if group.workers and group.service_time.mean:
                work = group.waiting * group.service_time.mean / group.workers
                due = group.wished + START_COST
                if work < START_COST and now < due:
                    self._look(due)
                    return False
        due = group.wished + self._gather_time
        if group.slots + missing < self._allocations.slots_in_all(group.shape) and now < due:
            self._look(due)
            return False
        return True

    def _start(self, group: WorkerGroup, missing: int) -> int:
        """Submit jobs for as many workers as there is room for; return how many are still missing."""
        allocations = self._allocations
        while missing > 0:
            slots = min(missing, group.slot_limit, allocations.slots_per_node(group.shape))
            fitting = allocations.slots_that_fit(group.shape)
            if not allocations.possible(allocations.of_workers(group.shape, 1)):
                fitting = 0 if group.slots else 1  # the instance says why not
            slots = min(slots, fitting)
            if slots < 1:
                break
            self._lifecycle.launch_workers(group, slots)
            missing -= slots
            group.wished = None
            if group.slot_limit < NO_LIMIT and not group.workers:
                break  # it was refused before: one at a time
        return missing

    def _take_from_others(
        self, group: WorkerGroup, missing: int, shares: dict[WorkerGroup, float], now: float
    ) -> bool:
        """Drain jobs of other groups, as far as that is due; whether there is room for a worker now."""
        starving = not group.slots
        if not starving and missing * 4 < group.slots + missing:
            return False
        surplus = {
            other: other.slots * other.shape.cores - max(share, other.shape.cores)
            for other, share in shares.items()
        }
        victims: list[WorkerJob] = []
        later: list[float] = []
        room = self._allocations.room
        cores, gpus = group.shape.cores - room.cores, group.shape.gpus - room.gpus
        others = sorted(
            self._others(group), key=lambda job: (job.busy > 0, -surplus[job.group], job.allocation)
        )
        for job in others:
            if cores <= 0 and gpus <= 0:
                break
            other = job.group
            useless = (cores <= 0 or not job.allocation.cores) and (gpus <= 0 or not job.allocation.gpus)
            if useless:
                continue
            idle = not job.busy and not other.waiting and not job.starting
            # One that does not even start would not be helped by changing places again and again.
            due = job.since + (10 * QUANTUM if job.starting else QUANTUM)
            if idle or (now >= due and (starving or surplus[other] > 0)):
                victims.append(job)
                surplus[other] -= job.allocation.cores
                cores -= job.allocation.cores
                gpus -= job.allocation.gpus
            elif starving or surplus[other] > 0:
                later.append(due)
        if cores > 0 or gpus > 0:
            # Otherwise, their tasks may have become fewer by then.
            self._look(min(later, default=now + QUANTUM))
            return False
        for job in victims:
            self._lifecycle.drain(job, "its cores are needed by tasks of another shape")
        return True

    def _others(self, group: WorkerGroup) -> Iterable[WorkerJob]:
        return (
            job
            for other in self._lifecycle.groups.values()
            if other is not group
            for job in other.jobs
            if not job.leaving
        )


def _price(job: WorkerJob) -> int:
    """What draining a job costs: tasks that run delay it, and cores must be replaced."""
    return 1000 * job.busy + job.allocation.cores
