"""What others leave free: when to ask the instance, and what follows from its answer.

Only the instance knows the jobs of other programs, drained nodes and the limits of queues. While a job or a
task waits, the scheduler asks for surveys: soon at first, then at least every `LONGEST_PERIOD`, and every
`BLOCKED_PERIOD` while others hold something. From the answers follow the cores that others hold
(:attr:`.Allocations.others`), smaller worker jobs in place of those that do not fit beside them, and why
tasks wait: in the story, and after `WARN_AFTER` in the log.

While a worker job is idle, the question is whether jobs of other programs wait: they get its cores at once.
While workers are busy, it is whether worker jobs of other executors do: they get an equal share
(:mod:`.other_executors`).
"""

from __future__ import annotations

from collections.abc import Collection

from parsl_flux_bulk.scheduler.capacity import Allocation, take_slots
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.messages import Instruction, Survey, UsageReported
from parsl_flux_bulk.scheduler.model import TaskJob, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.other_executors import Sharing
from parsl_flux_bulk.scheduler.states import TaskJobState, WorkerJobState
from parsl_flux_bulk.scheduler.story import Story
from parsl_flux_bulk.scheduler.task import CommandTask
from parsl_flux_bulk.scheduler.timers import Timers

FIRST_PERIOD = 0.15
"""Seconds from the submission of a job to the first survey."""

BLOCKED_PERIOD = 1.0
"""Seconds between two surveys, at most, while others hold something."""

LONGEST_PERIOD = 5.0
"""Seconds between two surveys, at most, while tasks wait for each other only."""

SHARE_PERIOD = 2.0
"""Seconds between two surveys, at most, while other executors may need cores of busy workers."""

IDLE_PERIOD = 0.1
"""Seconds that a worker job is idle before others may get its cores; the first period of surveys."""

YIELD_TIME = 10.0
"""Seconds for which a job of others gets the cores of idle workers: if it still waits, it waits for more."""

WARN_AFTER = 1.5
"""Seconds after which the log says why a task cannot run; with `BLOCKED_PERIOD`, within 5 s in any case."""

WARNINGS_LIMIT = 10
"""Task jobs that the log names at a time."""

_CANCELING = (WorkerJobState.CANCELING, TaskJobState.CANCELING)


class Surveyor:
    """Asks for surveys, and acts on them."""

    def __init__(self, out: list[Instruction], timers: Timers, story: Story, lifecycle: Lifecycle) -> None:
        self._out = out
        self._timers = timers
        self._story = story
        self._lifecycle = lifecycle
        self._allocations = lifecycle.allocations
        self._due: float | None = 0.0
        self._first = True
        self._for_others = False
        self._period = FIRST_PERIOD
        self._idle_due: float | None = None
        self._idle_period = IDLE_PERIOD
        self._yielded: dict[int, dict[int, float]] = {}
        self._seen: dict[int, Collection[int]] = {}
        self._before: dict[int, tuple[int, int]] = {}
        self._sharing = Sharing(timers, lifecycle)
        self._down: dict[int, int] = {}
        self._since: dict[WorkerGroup | TaskJob, float] = {}
        self._warned: set[WorkerGroup | TaskJob] = set()

    # -- when to ask -------------------------------------------------------------------------------

    def ask(self, now: float) -> None:
        """Ask for a survey if one is due; called in each pass."""
        self._ask_while_idle(now)
        # Without a node that is up, no job is submitted that would make anything unsettled.
        down = self._allocations.capacity is None
        if (self._due is None or self._for_others) and (
            self._lifecycle.unsettled or (down and self._anything_waits())
        ):
            self._for_others = False
            self._period = FIRST_PERIOD
            self._wait(now)
        elif self._due is None:
            if self._may_have_to_share():
                self._for_others = True
                self._period = SHARE_PERIOD
                self._wait(now)
        elif now >= self._due and not (self._first and down):
            self._ask_again(now)

    def _ask_again(self, now: float) -> None:
        """Ask for a survey, unless nothing depends on it any more."""
        waits, shares = self._anything_waits(), self._may_have_to_share()
        self._for_others = not (waits or self._first)
        if self._for_others:
            self._lifecycle.unsettled = False
            if not shares:
                self._due = None
                return
        self._first = False
        self._out.append(Survey())
        longest = SHARE_PERIOD if shares else LONGEST_PERIOD
        if waits and (any(self._allocations.others) or self._since):
            longest = BLOCKED_PERIOD
        self._period = min(2 * self._period, longest)
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._due = now + self._period
        self._timers.wake(self._due)

    def _ask_while_idle(self, now: float) -> None:
        if self._idle_due is None:
            if not self._lifecycle.idled:
                return
            self._lifecycle.idled = False
            self._idle_period = IDLE_PERIOD
        elif now < self._idle_due:
            return
        else:
            jobs = (job for group in self._lifecycle.groups.values() for job in group.jobs)
            idle = [job.idle_since for job in jobs if _is_idle(job)]
            if not idle:
                self._idle_due = None
                return
            # Between the tasks of a chain, a job is idle for a moment only.
            if min(idle) <= now - IDLE_PERIOD:
                self._out.append(Survey())
                self._idle_period = min(2 * self._idle_period, LONGEST_PERIOD)
        self._idle_due = now + self._idle_period
        self._timers.wake(self._idle_due)

    def _anything_waits(self) -> bool:
        lifecycle = self._lifecycle
        return (
            bool(lifecycle.held)
            or any(group.waiting and self._may_grow(group) for group in lifecycle.groups.values())
            or any(job.starting for group in lifecycle.groups.values() for job in group.jobs)
            or any(job.began is None or _is_silent(job) for job in lifecycle.task_jobs)
        )

    def _may_grow(self, group: WorkerGroup) -> bool:
        """Tell whether the instance may have, or get, room for further workers that is unknown here."""
        if any(self._allocations.others) or any(self._down.values()):
            return True
        return group.slots < self._allocations.slots_in_total(group.shape)

    def _may_have_to_share(self) -> bool:
        """Tell whether workers that are busy may have to end because of other executors."""
        unit = self._allocations.unit
        return any(
            group.busy and group.slots > unit(group.shape).workers
            for group in self._lifecycle.groups.values()
        )

    # -- what follows ------------------------------------------------------------------------------

    def reported(self, event: UsageReported) -> None:
        """Note what others hold, replace worker jobs that do not fit beside that, and say what waits."""
        capacity, scope = event.capacity, event.scope
        free_cores, free_gpus = (sum(column) for column in zip((0, 0), *event.free, strict=True))
        # A job that is canceled before it started is in neither list, as far as can be told.
        holding = [job for job in event.holding if job.peers or job.state not in _CANCELING]
        own_cores = sum(job.allocation.cores for job in holding)
        own_gpus = sum(job.allocation.gpus for job in holding)
        held = (max(0, capacity.cores - free_cores - own_cores), max(0, capacity.gpus - free_gpus - own_gpus))
        nodes = [list(node) for node in event.free]
        starting = [job for job in event.waiting if isinstance(job, WorkerJob) and job.available]
        blocked = [job for job in starting if take_slots(nodes, job.unit, job.slots) < job.slots]
        # A job on its way in or out looks like one of others for a moment: two surveys must agree, or a
        # worker job of ours must wait.
        share = self._sharing.share(event, holding, held[0], free_cores)
        taken = (held[0] + share.claimed, held[1])
        before = taken if blocked or share.claimed else self._before.get(scope, taken)
        self._before[scope] = taken
        self._down[scope] = event.down
        self._allocations.set_others(
            scope, (min(taken[0], before[0]), min(taken[1], before[1])), event.free, share.due
        )
        for job in event.waiting:
            if isinstance(job, TaskJob) and not job.peers:
                job.began = None  # it was assumed to have begun, since nothing was known to hold its cores
        self._lifecycle.changed = True
        self._replace(blocked)
        self._yield_idle(event)
        self._sharing.drain(event, share)
        self._explain(event, held, (free_cores, free_gpus))

    def _replace(self, blocked: list[WorkerJob]) -> None:
        """Cancel worker jobs that wait for others, or for a node that is down: smaller ones would start."""
        for job in blocked:
            if job.state is not WorkerJobState.STARTING:
                continue
            fitting = self._allocations.slots_instead(job.allocation, job.shape)
            # A job of one unit may wait inside: it starts as soon as there is room, and in its turn.
            if fitting < job.slots > job.unit.workers:
                reason = f"{fitting} of its {job.slots} workers fit in what is free"
                self._lifecycle.cancel(job, reason)

    def _yield_idle(self, event: UsageReported) -> None:
        """Stop the worker jobs that are idle, if jobs of other programs wait."""
        now = self._timers.now
        before = self._yielded.get(event.scope, {})
        yielded = self._yielded[event.scope] = {job: before[job] for job in event.others if job in before}
        # Every job waits for a moment, also where there is room for it.
        seen, self._seen[event.scope] = self._seen.get(event.scope, ()), event.others
        waiting = [
            job
            for job in event.others
            if now - yielded.get(job, now) < YIELD_TIME and (job in seen or not any(event.free))
        ]
        if not waiting:
            return
        for job in event.holding:
            if isinstance(job, WorkerJob) and _is_idle(job) and job.idle_since <= now - IDLE_PERIOD:
                self._lifecycle.stop(job, f"idle, and {len(waiting)} jobs of other programs wait")
                for other in waiting:
                    yielded.setdefault(other, now)

    # -- why something waits -----------------------------------------------------------------------

    def _explain(self, event: UsageReported, held: tuple[int, int], free: tuple[int, int]) -> None:
        """Say why tasks cannot run, unless they wait for tasks of this executor only."""
        lifecycle, allocations = self._lifecycle, self._allocations
        stuck: dict[WorkerGroup | TaskJob, str] = {}
        for job, reason in event.waiting.items():
            if isinstance(job, WorkerJob):
                if job.group.workers or not job.group.waiting:
                    continue
            elif job.state is not TaskJobState.SUBMITTED:
                continue
            need = job.allocation
            fits = need.cores <= free[0] and need.gpus <= free[1]
            if any(held) or fits or not event.holding or not allocations.possible(need):
                key = job.group if isinstance(job, WorkerJob) else job
                stuck[key] = f"its job waits in the instance: {reason or _why(fits)}"
        if any(allocations.others) or allocations.capacity is None:
            for group in lifecycle.groups.values():
                if group.waiting and not group.workers and not any(job.starting for job in group.jobs):
                    stuck.setdefault(group, "there is no room for a worker")
            if lifecycle.held:
                need = allocations.of_task(lifecycle.held[0].task.resources)
                if allocations.capacity is None or not allocations.has_room(need):
                    stuck[lifecycle.held[0]] = f"its job is held: it needs {_amount(need)}"
        down = f", {event.down} are down or drained" if event.down else ""
        around = (
            f"{free[0]} of {event.capacity.cores} cores and {free[1]} of {event.capacity.gpus} GPUs are free "
            f"on the {event.capacity.nodes} nodes that are up{down}; other programs hold {held[0]} cores and "
            f"{held[1]} GPUs"
        )
        if cores := sum(other.held for other in event.executors):
            around += f"; workers of other executors, which share by demand, hold {cores} of these cores"
        now = self._timers.now
        self._since = {key: self._since.get(key, now) for key in stuck}
        self._warned.intersection_update(stuck)
        for key, reason in stuck.items():
            loud = now - self._since[key] >= WARN_AFTER and key not in self._warned
            if loud and isinstance(key, TaskJob):
                loud = sum(isinstance(other, TaskJob) for other in self._warned) < WARNINGS_LIMIT
            if loud:
                self._warned.add(key)
            self._story.blocked(key, f"{reason}; {around}", loud=loud)


def _is_silent(job: TaskJob) -> bool:
    """Whether a job that is taken to have begun may as well wait: nothing in it has connected."""
    return not job.peers and not isinstance(job.task, CommandTask)


def _is_idle(job: WorkerJob) -> bool:
    return job.state is WorkerJobState.SERVING and not job.busy and not job.group.waiting


def _why(fits: bool) -> str:
    if fits:
        return "state SCHED, although so much is free: its constraint or queue, or a job before it, forbids"
    return "state SCHED: insufficient resources"


def _amount(need: Allocation) -> str:
    return f"{need.cores} cores and {need.gpus} GPUs" + (
        f" on {need.nodes} whole nodes" if need.nodes else ""
    )
