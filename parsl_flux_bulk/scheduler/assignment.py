"""Which worker gets which tasks, and which tasks are recalled.

Idle workers come first, each with its share; then busy ones whose queue is half empty. Nothing is searched:
workers enter `WorkerGroup.refillable` and `WorkerGroup.idle` as their tasks end. The cost of a pass is
proportional to the tasks that it assigns, whatever the number of workers and of waiting tasks. `PASS_LIMIT`
bounds a pass: what is left follows in the next one, after the events that arrived meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.messages import AssignTasks, Instruction, KillWorker, RecallTasks
from parsl_flux_bulk.scheduler.model import Peer, Worker, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.service_time import BYTES_LIMIT, TARGET
from parsl_flux_bulk.scheduler.states import PeerState, TaskState, WorkerState
from parsl_flux_bulk.scheduler.story import Story
from parsl_flux_bulk.scheduler.task import CallTask, Function, Task
from parsl_flux_bulk.scheduler.timers import Timers

STALL = 0.1
"""Seconds after which a task must have ended; otherwise the tasks queued behind it are recalled."""

STEAL = 0.005
"""Seconds of work behind which no task may wait while a worker of its shape is idle."""

PASS_LIMIT = 300
"""Tasks assigned, or workers searched for tasks to recall, in one pass: about 2 ms. With 1000,
so many instructions outlive young collections that full collections are twice as frequent."""

FUNCTIONS_LIMIT = 512
"""Functions that a peer keeps."""

_SCANNED = 8
"""Busy workers considered in one pass, for tasks that no idle worker can take."""


class Assigner:
    """Assigns tasks to workers.

    Attributes
    ----------
    unsettled : dict of Worker to None
        Workers with events since the last `settle`.
    """

    def __init__(self, out: list[Instruction], timers: Timers, story: Story, lifecycle: Lifecycle) -> None:
        self._out = out
        self._timers = timers
        self._story = story
        self._lifecycle = lifecycle
        self.unsettled: dict[Worker, None] = {}

    # -- what happened -----------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Evaluate the events of workers since the last call."""
        unsettled, self.unsettled = self.unsettled, {}
        for worker in unsettled:
            group = worker.group
            if count := worker.ended:
                group.assigned -= count
                group.service_time.observe(worker.function_id, (now - worker.mark) / count, count)
                group.start_failures = worker.peer.start_failures = worker.ended = 0
                worker.mark = now
            if worker.cancels and worker.peer.state is not PeerState.LOST:
                self._kill_canceled(worker)
            state = worker.state
            if worker.queue:
                if state is WorkerState.BUSY:
                    group.refillable.append(worker)
            elif state is WorkerState.BUSY:
                worker.move_to(WorkerState.IDLE)
                del group.busy[worker]
                group.idle[worker] = None
                self._note_done(worker.job, now)
            elif state is WorkerState.DRAINING:
                worker.move_to(WorkerState.OFFLINE)
                self._note_done(worker.job, now)

    def _note_done(self, job: WorkerJob, now: float) -> None:
        """Note that a worker of a job ended its last task."""
        job.busy -= 1
        if not job.busy:
            self._lifecycle.note_idle(job, now)

    def _kill_canceled(self, worker: Worker) -> None:
        """Kill a canceled task that could not be recalled, and runs now."""
        if worker.queue and (task := worker.queue[0]).canceled and worker.killing != task.task_id:
            self.kill(worker, task)

    def kill(self, worker: Worker, task: Task) -> None:
        """Kill the process that runs a task; recall the others first, so that none starts meanwhile."""
        worker.killing = task.task_id
        self._lifecycle.recall(worker, f"task {task.task_id} is canceled")
        self._story.task("kill", task, "canceled while it ran", worker.job)
        self._out.append(KillWorker(worker.peer.peer_id, worker.slot, task.task_id))

    def recall_one(self, worker: Worker, task: Task) -> None:
        """Recall one task."""
        self._story.task("recall", task, "canceled while it was queued", worker.job)
        self._out.append(RecallTasks(worker.peer.peer_id, worker.slot, task.task_id))

    # -- what to do --------------------------------------------------------------------------------

    def assign(self, now: float) -> None:
        """Assign the tasks that can be assigned, and recall those that should be."""
        groups = self._lifecycle.groups.values()
        # A limit for each: a flood of one shape must not keep the workers of the others idle.
        limit = max(1, PASS_LIMIT // max(1, sum(group.waiting > 0 for group in groups)))
        for group in groups:
            if group.waiting and (group.idle or group.busy):
                self._assign(group, limit, now)
            if not group.waiting:
                group.refillable.clear()
                if group.short_since is not None:
                    group.short_since = None
                    self._lifecycle.changed = True
                if group.idle and group.backlogged:
                    self._steal(group, now)
            elif group.idle or group.refillable:
                self._timers.wake(now)

    def _assign(self, group: WorkerGroup, limit: int, now: float) -> None:
        """Assign about `limit` tasks of a group."""
        allowance = group.service_time.allowance(group.outstanding, group.workers)
        idle, refillable, queue = group.idle, group.refillable, group.queue
        least = queue.waiting - limit
        while idle and queue.waiting > least and queue.waiting:
            share = -(-queue.waiting // len(idle))
            # The worker that became idle last has the warmest caches; the others can reach the idle timeout.
            worker = idle.popitem()[0]
            self._fill(worker, 1 if worker.peer.start_failures else min(allowance, share), now)
        while refillable and queue.waiting > least and queue.waiting:
            worker = refillable.popleft()
            if worker.state is WorkerState.BUSY:
                self._refill(worker, allowance, now)
        if allowance < 2:
            return
        for worker in list(islice(group.busy, _SCANNED)):
            if queue.waiting <= least or not queue.waiting:
                return
            # To the end of the line: the next pass scans the others.
            del group.busy[worker]
            group.busy[worker] = None
            self._refill(worker, allowance, now)

    def _refill(self, worker: Worker, allowance: int, now: float) -> None:
        # No task is queued behind one that has been running for a while.
        if 2 * len(worker.queue) <= allowance and now - worker.mark < TARGET / 2:
            self._fill(worker, allowance - len(worker.queue), now)

    def _fill(self, worker: Worker, limit: int, now: float) -> None:
        group, queue, waiting = worker.group, worker.queue, worker.group.queue
        expected = group.service_time.expected
        budget = TARGET - _load(worker) if queue else TARGET
        size, known = worker.size, worker.peer.functions
        tasks: list[CallTask] = []
        functions: Sequence[Function] = ()
        last, cost = -1, 0.0
        while limit > 0 and waiting.waiting:
            if queue and (budget <= 0.0 or (size >= BYTES_LIMIT and len(queue) > 1)):
                break
            task = waiting.pop()
            function_id = task.function.function_id
            if function_id != last:
                last, cost = function_id, expected(function_id)
                if function_id not in known and all(f.function_id != function_id for f in functions):
                    functions = [*functions, task.function]
            budget -= cost
            size += len(task.call)
            limit -= 1
            task.move_to(TaskState.ASSIGNED)
            task.place = worker
            task.assigned = now
            tasks.append(task)
            queue.append(task)
        if not tasks:
            return
        group.assigned += len(tasks)
        worker.size = size
        worker.recalled = False
        self._story.assigned(worker, tasks, now)
        if worker.state is WorkerState.IDLE:
            worker.move_to(WorkerState.BUSY)
            worker.mark = now
            worker.job.busy += 1
            group.busy[worker] = None
        if len(queue) > 1:
            group.backlogged[worker] = None
            if not worker.watched:
                worker.watched = True
                self._timers.at(now + STALL, self._check_stalled, worker)
        forget = _note_functions(worker.peer, functions) if functions else ()
        self._out.append(AssignTasks(worker.peer.peer_id, worker.slot, tasks, functions, forget))

    # -- no task waits behind a long one -----------------------------------------------------------

    def _check_stalled(self, worker: Worker, now: float) -> None:
        worker.watched = False
        if len(worker.queue) < 2 or worker.recalled or worker.peer.state is not PeerState.CONNECTED:
            return
        due = worker.mark + STALL
        if now >= due:
            self._lifecycle.recall(worker, "they wait behind a long task")
        else:
            worker.watched = True
            self._timers.at(due, self._check_stalled, worker)

    def _steal(self, group: WorkerGroup, now: float) -> None:
        """Recall tasks that wait in queues, for idle workers."""
        wanted = min(len(group.idle), PASS_LIMIT)
        soonest: float | None = None
        for worker in list(islice(group.backlogged, 2 * wanted + _SCANNED)):
            behind = len(worker.queue) - 1
            if behind < 1 or worker.recalled:
                del group.backlogged[worker]
                continue
            if max(now - worker.mark, behind * group.service_time.mean) < STEAL:
                due = worker.mark + STEAL
                soonest = due if soonest is None else min(due, soonest)
                continue
            self._lifecycle.recall(worker, "another worker is idle")
            wanted -= 1
            if not wanted:
                return
        if soonest is not None and (group.steal_at is None or group.steal_at <= now):
            group.steal_at = soonest
            self._timers.wake(soonest)


def _load(worker: Worker) -> float:
    """Return the seconds of work that a worker may still have."""
    queue, service_time = worker.queue, worker.group.service_time
    if len(queue) > 8:
        return len(queue) * service_time.mean
    return sum(service_time.expected(task.function.function_id) for task in queue)


def _note_functions(peer: Peer, functions: Sequence[Function]) -> list[int]:
    """Note that a peer gets functions; return the ids of those that it must forget first."""
    known = peer.functions
    forget: list[int] = []
    if len(known) + len(functions) > FUNCTIONS_LIMIT:
        in_use = {task.function.function_id for worker in peer.workers for task in worker.queue}
        spare = len(known) - FUNCTIONS_LIMIT // 2
        forget = [function_id for function_id in list(known)[: max(0, spare)] if function_id not in in_use]
        for function_id in forget:
            del known[function_id]
    for function in functions:
        known[function.function_id] = None
    return forget
