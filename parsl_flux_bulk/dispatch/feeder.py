"""Which worker gets which tasks, and which are asked back.

Idle workers come first, each with its share; then those whose queue is half empty. Nothing is ever
looked for: workers enter `Crew.ready` and `Crew.idle` as their tasks end, so that a pass costs as
much as it gives, however many workers and tasks there are.
"""

from __future__ import annotations

from itertools import islice

from parsl_flux_bulk.dispatch.crew import Crew, Worker, functions_for
from parsl_flux_bulk.dispatch.fleet import Fleet
from parsl_flux_bulk.dispatch.instructions import Give, Instruction, Kill, Recall
from parsl_flux_bulk.dispatch.pace import BYTES_LIMIT, TARGET
from parsl_flux_bulk.dispatch.task import Task, TaskFunction, TaskState
from parsl_flux_bulk.dispatch.timers import Timers

STALL = 0.1
"""Seconds after which a task must have ended, or those queued behind it are asked back."""

STEAL = 0.005
"""Seconds of work behind which nothing may wait while a worker of its shape is idle."""

_LOOKED_AT = 8
"""Busy workers considered in one pass for tasks that nobody idle can take."""


class Feeder:
    """Hands tasks to workers.

    Attributes
    ----------
    touched : list of Worker
        Those that something has happened to since `settle`.
    """

    def __init__(self, out: list[Instruction], timers: Timers, fleet: Fleet) -> None:
        self._out = out
        self._timers = timers
        self._fleet = fleet
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
                    worker.crew.ready.append(worker)
            elif worker.active:
                self._now_idle(worker, now)

    def _measure(self, worker: Worker, now: float) -> None:
        crew, count = worker.crew, worker.ended
        crew.given -= count
        crew.pace.observe(worker.function_id, (now - worker.mark) / count, count)
        crew.barren = worker.peer.barren = worker.ended = 0
        worker.mark = now

    def _now_idle(self, worker: Worker, now: float) -> None:
        worker.active = False
        job = worker.job
        job.busy -= 1
        if worker.serving:
            crew = worker.crew
            del crew.busy[worker]
            crew.idle[worker] = None
        if not job.busy:
            self._fleet.note_idle(job, now)

    def _chase(self, worker: Worker) -> None:
        """A cancelled task that could not be recalled, and is at the head now, is to be killed."""
        if worker.queue and (task := worker.queue[0]).cancelled and worker.killing != task.task_id:
            self.kill(worker, task)

    def kill(self, worker: Worker, task: Task) -> None:
        """End the process that runs a task; nothing else is to start there in between."""
        worker.killing = task.task_id
        self._fleet.recall(worker)
        self._out.append(Kill(worker.peer.peer_id, worker.slot, task.task_id))

    def recall_one(self, worker: Worker, task: Task) -> None:
        """Ask for one task back."""
        self._out.append(Recall(worker.peer.peer_id, worker.slot, task.task_id))

    # -- what is to be done ------------------------------------------------------------------------

    def feed(self, now: float) -> None:
        """Give what may be given, and ask back what should be."""
        for crew in self._fleet.crews.values():
            if crew.waiting and (crew.idle or crew.busy):
                self._feed(crew, now)
            crew.ready.clear()
            if not crew.waiting and crew.wished is not None:
                crew.wished = None
                self._fleet.changed = True
            if crew.idle and crew.laden and not crew.waiting:
                self._steal(crew, now)

    def _feed(self, crew: Crew, now: float) -> None:
        allowance = crew.pace.allowance(crew.outstanding, len(crew.idle) + len(crew.busy))
        idle = crew.idle
        while idle and crew.waiting:
            share = -(-crew.waiting // len(idle))
            # The last to become idle is the warmest, and lets the others come of age.
            worker = idle.popitem()[0]
            self._fill(worker, 1 if worker.peer.barren else min(allowance, share), now)
        if not crew.waiting:
            return
        for worker in crew.ready:
            if crew.waiting and worker.serving:
                self._top_up(worker, allowance, now)
        if allowance < 2:
            return
        for worker in list(islice(crew.busy, _LOOKED_AT)):
            if not crew.waiting:
                return
            # To the end of the line: the others are looked at the next time.
            del crew.busy[worker]
            crew.busy[worker] = None
            self._top_up(worker, allowance, now)

    def _top_up(self, worker: Worker, allowance: int, now: float) -> None:
        # Nothing goes behind a task that has been running for a while.
        if 2 * len(worker.queue) <= allowance and now - worker.mark < TARGET / 2:
            self._fill(worker, allowance - len(worker.queue), now)

    def _fill(self, worker: Worker, limit: int, now: float) -> None:
        crew, queue = worker.crew, worker.queue
        expected = crew.pace.expected
        budget = TARGET - _load(worker)
        size, known = worker.size, worker.peer.functions
        tasks: list[Task] = []
        functions: list[TaskFunction] = []
        last, cost = -1, 0.0
        while limit > 0 and crew.waiting:
            if queue and (budget <= 0.0 or (size >= BYTES_LIMIT and len(queue) > 1)):
                break
            task = crew.pop()
            function_id = task.function.function_id
            if function_id != last:
                last, cost = function_id, expected(function_id)
                if function_id not in known and all(f.function_id != function_id for f in functions):
                    functions.append(task.function)
            budget -= cost
            size += len(task.call)
            limit -= 1
            task.state = TaskState.GIVEN
            task.place = worker
            tasks.append(task)
            queue.append(task)
        if tasks:
            crew.given += len(tasks)
            worker.size = size
            self._gave(worker, now)
            forget: list[int] = []
            if functions:
                functions, forget = functions_for(worker.peer, functions)
            self._out.append(Give(worker.peer.peer_id, worker.slot, tasks, functions, forget))
        elif not queue:
            crew.idle[worker] = None

    def _gave(self, worker: Worker, now: float) -> None:
        crew = worker.crew
        worker.recalled = False
        if not worker.active:
            worker.active = True
            worker.mark = now
            worker.job.busy += 1
            crew.busy[worker] = None
        if len(worker.queue) > 1:
            crew.laden[worker] = None
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
            self._fleet.recall(worker)
        else:
            worker.watched = True
            self._timers.at(due, lambda now: self._look_stalled(worker, now))

    def _steal(self, crew: Crew, now: float) -> None:
        """Ask back what waits in queues, for the workers that have nothing."""
        wanted = len(crew.idle)
        soonest: float | None = None
        for worker in list(islice(crew.laden, 2 * wanted + _LOOKED_AT)):
            behind = len(worker.queue) - 1
            if behind < 1 or worker.recalled:
                del crew.laden[worker]
                continue
            if max(now - worker.mark, behind * crew.pace.mean) < STEAL:
                due = worker.mark + STEAL
                soonest = due if soonest is None else min(due, soonest)
                continue
            self._fleet.recall(worker)
            wanted -= 1
            if not wanted:
                return
        if soonest is not None and (crew.steal_at is None or crew.steal_at <= now):
            crew.steal_at = soonest
            # To be called is enough: a look at everything follows.
            self._timers.at(soonest, lambda _: None)


def _load(worker: Worker) -> float:
    """Seconds of work that a worker may still have."""
    queue, pace = worker.queue, worker.crew.pace
    if len(queue) > 8:
        return len(queue) * pace.mean
    return sum(pace.expected(task.function.function_id) for task in queue)
