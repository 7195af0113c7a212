"""Which worker gets which tasks, and which are asked back.

Idle workers come first, each with its share; then those whose queue is half empty. Nothing is
searched: workers enter `WorkerGroup.ready` and `WorkerGroup.idle` as their tasks end, so the cost of a pass
is proportional to the tasks that it assigns, whatever the number of workers and waiting tasks.
"""

from __future__ import annotations

from itertools import islice

from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.messages import AssignTasks, Instruction, KillWorker, RecallTasks
from parsl_flux_bulk.scheduler.model import Peer, Worker, WorkerGroup
from parsl_flux_bulk.scheduler.service_time import BYTES_LIMIT, TARGET
from parsl_flux_bulk.scheduler.task import CallTask, Function, Task, TaskState
from parsl_flux_bulk.scheduler.timers import Timers

STALL = 0.1
"""Seconds after which a task must have ended, or those queued behind it are asked back."""

STEAL = 0.005
"""Seconds of work behind which nothing may wait while a worker of its shape is idle."""

FUNCTIONS_LIMIT = 512
"""Functions that a peer is trusted to keep."""

_LOOKED_AT = 8
"""Busy workers considered in one pass for tasks that nobody idle can take."""


class Assigner:
    """Hands tasks to workers.

    Attributes
    ----------
    touched : list of Worker
        Those that something has happened to since `settle`.
    """

    def __init__(self, out: list[Instruction], timers: Timers, lifecycle: Lifecycle) -> None:
        self._out = out
        self._timers = timers
        self._lifecycle = lifecycle
        self.touched: list[Worker] = []

    def touch(self, worker: Worker) -> None:
        """Something happened to a worker's queue."""
        if not worker.touched:
            worker.touched = True
            self.touched.append(worker)

    # -- what has happened -------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Take in what happened to workers since the last time."""
        touched = self.touched
        if not touched:
            return
        self.touched = []
        for worker in touched:
            worker.touched = False
            if worker.ended:
                self._measure(worker, now)
            if worker.cancels and not worker.peer.lost:
                self._chase(worker)
            if worker.queue:
                if worker.serving:
                    worker.group.ready.append(worker)
            elif worker.active:
                self._now_idle(worker, now)

    def _measure(self, worker: Worker, now: float) -> None:
        group, count = worker.group, worker.ended
        group.given -= count
        group.service_time.observe(worker.function_id, (now - worker.mark) / count, count)
        group.start_failures = worker.peer.start_failures = worker.ended = 0
        worker.mark = now

    def _now_idle(self, worker: Worker, now: float) -> None:
        worker.active = False
        job = worker.job
        job.busy -= 1
        if worker.serving:
            group = worker.group
            del group.busy[worker]
            group.idle[worker] = None
        if not job.busy:
            self._lifecycle.note_idle(job, now)

    def _chase(self, worker: Worker) -> None:
        """A canceled task that could not be recalled, and is at the head now, is to be killed."""
        if worker.queue and (task := worker.queue[0]).canceled and worker.killing != task.task_id:
            self.kill(worker, task)

    def kill(self, worker: Worker, task: Task) -> None:
        """End the process that runs a task; nothing else is to start there in between."""
        worker.killing = task.task_id
        self._lifecycle.recall(worker)
        self._out.append(KillWorker(worker.peer.peer_id, worker.slot, task.task_id))

    def recall_one(self, worker: Worker, task: Task) -> None:
        """Ask for one task back."""
        self._out.append(RecallTasks(worker.peer.peer_id, worker.slot, task.task_id))

    # -- what is to be done ------------------------------------------------------------------------

    def feed(self, now: float) -> None:
        """AssignTasks what may be given, and ask back what should be."""
        for group in self._lifecycle.groups.values():
            if group.waiting and (group.idle or group.busy):
                self._feed(group, now)
            group.ready.clear()
            if not group.waiting and group.wished is not None:
                group.wished = None
                self._lifecycle.changed = True
            if group.idle and group.laden and not group.waiting:
                self._steal(group, now)

    def _feed(self, group: WorkerGroup, now: float) -> None:
        allowance = group.service_time.allowance(group.outstanding, len(group.idle) + len(group.busy))
        idle = group.idle
        while idle and group.waiting:
            share = -(-group.waiting // len(idle))
            # The last to become idle is the warmest, and lets the others come of age.
            worker = idle.popitem()[0]
            self._fill(worker, 1 if worker.peer.start_failures else min(allowance, share), now)
        if not group.waiting:
            return
        for worker in group.ready:
            if group.waiting and worker.serving:
                self._top_up(worker, allowance, now)
        if allowance < 2:
            return
        for worker in list(islice(group.busy, _LOOKED_AT)):
            if not group.waiting:
                return
            # To the end of the line: the others are looked at the next time.
            del group.busy[worker]
            group.busy[worker] = None
            self._top_up(worker, allowance, now)

    def _top_up(self, worker: Worker, allowance: int, now: float) -> None:
        # Nothing goes behind a task that has been running for a while.
        if 2 * len(worker.queue) <= allowance and now - worker.mark < TARGET / 2:
            self._fill(worker, allowance - len(worker.queue), now)

    def _fill(self, worker: Worker, limit: int, now: float) -> None:
        group, queue = worker.group, worker.queue
        expected = group.service_time.expected
        budget = TARGET - _load(worker)
        size, known = worker.size, worker.peer.functions
        tasks: list[CallTask] = []
        functions: list[Function] = []
        last, cost = -1, 0.0
        while limit > 0 and group.waiting:
            if queue and (budget <= 0.0 or (size >= BYTES_LIMIT and len(queue) > 1)):
                break
            task = group.queue.pop()
            function_id = task.function.function_id
            if function_id != last:
                last, cost = function_id, expected(function_id)
                if function_id not in known and all(f.function_id != function_id for f in functions):
                    functions.append(task.function)
            budget -= cost
            size += len(task.call)
            limit -= 1
            task.state = TaskState.ASSIGNED
            task.place = worker
            tasks.append(task)
            queue.append(task)
        if tasks:
            group.given += len(tasks)
            worker.size = size
            self._gave(worker, now)
            forget: list[int] = []
            if functions:
                functions, forget = _functions_for(worker.peer, functions)
            self._out.append(AssignTasks(worker.peer.peer_id, worker.slot, tasks, functions, forget))
        elif not queue:
            group.idle[worker] = None

    def _gave(self, worker: Worker, now: float) -> None:
        group = worker.group
        worker.recalled = False
        if not worker.active:
            worker.active = True
            worker.mark = now
            worker.job.busy += 1
            group.busy[worker] = None
        if len(worker.queue) > 1:
            group.laden[worker] = None
            if not worker.watched:
                worker.watched = True
                self._timers.at(now + STALL, lambda now: self._look_stalled(worker, now))

    # -- nothing waits behind a long task ----------------------------------------------------------

    def _look_stalled(self, worker: Worker, now: float) -> None:
        worker.watched = False
        if len(worker.queue) < 2 or worker.recalled or worker.peer.gone:
            return
        due = worker.mark + STALL
        if now >= due:
            self._lifecycle.recall(worker)
        else:
            worker.watched = True
            self._timers.at(due, lambda now: self._look_stalled(worker, now))

    def _steal(self, group: WorkerGroup, now: float) -> None:
        """Ask back what waits in queues, for the workers that have nothing."""
        wanted = len(group.idle)
        soonest: float | None = None
        for worker in list(islice(group.laden, 2 * wanted + _LOOKED_AT)):
            behind = len(worker.queue) - 1
            if behind < 1 or worker.recalled:
                del group.laden[worker]
                continue
            if max(now - worker.mark, behind * group.service_time.mean) < STEAL:
                due = worker.mark + STEAL
                soonest = due if soonest is None else min(due, soonest)
                continue
            self._lifecycle.recall(worker)
            wanted -= 1
            if not wanted:
                return
        if soonest is not None and (group.steal_at is None or group.steal_at <= now):
            group.steal_at = soonest
            # To be called is enough: a look at everything follows.
            self._timers.at(soonest, lambda _: None)


def _load(worker: Worker) -> float:
    """Seconds of work that a worker may still have."""
    queue, service_time = worker.queue, worker.group.service_time
    if len(queue) > 8:
        return len(queue) * service_time.mean
    return sum(service_time.expected(task.function.function_id) for task in queue)


def _functions_for(peer: Peer, functions: list[Function]) -> tuple[list[Function], list[int]]:
    """Note that a peer gets functions it has not; return them, and the ids of those it can forget."""
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
    return functions, forget
