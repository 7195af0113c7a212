"""What runs where, and when: a pure state machine. Events in, instructions out.

::

    submit, cancel, ... ──────┐                     ┌─> SubmitJob, CancelJob        to the pipeline
    CapacityChanged, JobEnded ┤                     │
    PeerConnected, PeerLost ──┼──> Scheduler.take ──┼─> AssignTasks, RecallTasks,
    TaskOutcome, TaskReturned ┤                     │   KillWorker, StopPeer        to peers
    WorkerDied ───────────────┘                     └─> ResolveTask                 to futures

No threads, no I/O, no clock: `take` is told the time, and `deadline` says when it is wanted next even
if nothing happens. Events only record; `take` decides, once for all events of a batch.

**No task runs twice.** A task is with one worker or task job at a time, and is taken from it only by
the peer's word that it has not started (`returned`). When a whole peer is lost, no such word comes, and
outcomes may have been lost on the way: then every task that it had been given ends with a
:class:`Loss`. The first of each worker was running, as far as we know (``WORKER_LOST``); the others
may have been (``MAYBE_STARTED``). There are few of those: :mod:`.service_time` bounds a worker's queue to
a few hundredths of a second of work, and what is queued behind a longer task is asked back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from parsl_flux_bulk.instances.base import PeerId
from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.assignment import Assigner
from parsl_flux_bulk.scheduler.autoscaler import Autoscaler
from parsl_flux_bulk.scheduler.lifecycle import START_FAILURE_LIMIT, Lifecycle
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    CapacityChanged,
    Event,
    Instruction,
    JobEnded,
    PeerConnected,
    PeerLost,
    ResolveTask,
    StopPeer,
    TaskOutcome,
    TaskReturned,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.model import NO_LIMIT, Peer, TaskJob, Worker, WorkerJob
from parsl_flux_bulk.scheduler.outcomes import Outcomes
from parsl_flux_bulk.scheduler.task import (
    CANCELED,
    CommandTask,
    Loss,
    LossReason,
    Task,
    TaskState,
)
from parsl_flux_bulk.scheduler.timers import Timers


@dataclass(frozen=True)
class Status:
    """Counts, at one moment.

    Attributes
    ----------
    pending, running, done, failed, canceled : int
        Tasks: not started as far as is known; started; ended with a value; with an exception or a
        loss; canceled.
    workers, busy_workers, cores : dict of Shape to int
        Connected workers, those of them with tasks, and cores that their jobs hold.
    worker_jobs, task_jobs : int
        Jobs submitted and not ended.
    """

    pending: int
    running: int
    done: int
    failed: int
    canceled: int
    workers: dict[Shape, int]
    busy_workers: dict[Shape, int]
    cores: dict[Shape, int]
    worker_jobs: int
    task_jobs: int


class Scheduler:
    """The state machine.

    Parameters
    ----------
    capacity : Capacity or None
        Until it is known nothing is submitted; see the event of that name.
    is_failure : callable
        Whether the bytes of an outcome are those of an exception.
    tasks_per_job : int or None
        1 gives every task a job of its own.
    worker_idle_time : float
        Seconds after which workers without tasks end.
    max_active_jobs : int
        Jobs that the pipeline keeps inside the instance; twice as many task jobs are passed on.
    gather_time : float
        Seconds that a shape's first job waits for more tasks to come.
    """

    def __init__(
        self,
        *,
        is_failure: Callable[[bytes], bool],
        tasks_per_job: int | None = None,
        worker_idle_time: float = 3.0,
        max_active_jobs: int = 32,
        gather_time: float = 0.003,
    ) -> None:
        self._is_failure = is_failure
        self._all_alone = tasks_per_job == 1
        self._out: list[Instruction] = []
        self._timers = Timers()
        self._lifecycle = Lifecycle(self._out, self._timers, worker_idle_time)
        self._assigner = Assigner(self._out, self._timers, self._lifecycle)
        self._autoscaler = Autoscaler(
            self._lifecycle, self._timers, max_active_jobs=max_active_jobs, gather_time=gather_time
        )
        self._outcomes = Outcomes(self._out, self._timers, self._lifecycle, is_failure)
        self._peers = self._outcomes.peers
        self._closed = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            CapacityChanged: self._capacity_changed,
            JobEnded: self._job_ended,
            PeerConnected: self._peer_connected,
            PeerLost: self._peer_lost,
            TaskOutcome: self._task_outcome,
            TaskReturned: self._task_returned,
            WorkerDied: self._worker_died,
        }

    # -- instructions ------------------------------------------------------------------------------

    def take(self, now: float) -> list[Instruction]:
        """Decide on everything that happened, and return what is to be done, in this order.

        Parameters
        ----------
        now : float
            Seconds, of a clock that never goes back.
        """
        now = self._timers.advance(now)
        self._assigner.settle(now)
        self._timers.run()
        if not self._closed:
            self._decide(now)
        self._timers.settle()
        out = self._out.copy()
        self._out.clear()
        return out

    def _decide(self, now: float) -> None:
        # One decision can call for another: cores that a drained group left are there for others.
        for _ in range(4):
            self._autoscaler.plan(now)
            self._assigner.feed(now)
            if not self._lifecycle.changed or self._lifecycle.allocations.capacity is None:
                return
        self._timers.at(now, lambda _: None)

    def deadline(self) -> float | None:
        """When `take` is wanted next, even if nothing happens; None: not at all."""
        return self._timers.deadline()

    @property
    def service_time(self) -> float:
        """Seconds that a task takes on average, in the group where it takes longest; 0 if none has ended."""
        return max((group.service_time.mean for group in self._lifecycle.groups.values()), default=0.0)

    # -- events: tasks -----------------------------------------------------------------------------

    def submit(self, tasks: Iterable[Task]) -> None:
        """There are new tasks."""
        lifecycle = self._lifecycle
        for task in tasks:
            shape = task.resources.shape
            if self._closed:
                self._outcomes.resolve(task, Loss(LossReason.SHUT_DOWN))
            elif isinstance(task, CommandTask) or shape is None or self._all_alone:
                lifecycle.hold(task)
            else:
                group = lifecycle.groups.get(shape)
                (group or lifecycle.group(shape)).queue.push(task)
        lifecycle.changed = True

    def cancel(self, task: Task) -> None:
        """A task is not wanted any more. If it is too late to stop it, its own outcome stands."""
        if task.state == TaskState.DONE or task.canceled:
            return
        task.canceled = True
        place = task.place
        if isinstance(place, Worker):
            place.cancels += 1
            if place.peer.gone:
                return
            if place.queue[0] is task:
                self._assigner.kill(place, task)
            else:
                self._assigner.recall_one(place, task)
        elif isinstance(place, TaskJob) and place.submitted and place not in self._outcomes.parked:
            self._lifecycle.cancel(place, "its task was canceled")
        else:
            if place is None:
                self._lifecycle.group(_shape(task)).queue.discard()
            self._lifecycle.changed = True
            self._outcomes.resolve(task, CANCELED)

    def handle(self, event: Event) -> None:
        """Take note of what happened."""
        self._handlers[type(event)](event)

    # -- events: jobs ------------------------------------------------------------------------------

    def _job_ended(self, event: JobEnded) -> None:
        job, result = event.job, event.result
        if job.token not in self._lifecycle.jobs:
            return
        self._lifecycle.ended(job, result)
        if isinstance(job, TaskJob):
            self._autoscaler.task_job_ended(job, self._timers.now)
            self._outcomes.task_job_ended(job)
        else:
            self._outcomes.worker_job_ended(job, result)

    def _capacity_changed(self, event: CapacityChanged) -> None:
        capacity = event.capacity
        lifecycle = self._lifecycle
        lifecycle.allocations.capacity = capacity if capacity.cores else None
        lifecycle.changed = True
        self._outcomes.unpark()
        for group in lifecycle.groups.values():
            group.slot_limit = NO_LIMIT
            group.stopped = False

    def drain_jobs(self, chosen: Callable[[WorkerJob], bool], reason: str) -> None:
        """Let a block's worker jobs end as soon as what they run has; what they have not started moves."""
        for job in list(self._worker_jobs()):
            if chosen(job):
                job.ends_with_block = True
                self._lifecycle.drain(job, reason)

    # -- events: peers -----------------------------------------------------------------------------

    def _peer_connected(self, event: PeerConnected) -> None:
        peer_id, rank, host, node = event.peer, event.rank, event.host, event.node
        job = self._lifecycle.jobs.get(event.token)
        if peer_id in self._peers:
            return
        if job is None or job.canceled or self._closed or rank in job.peers:
            self._out.append(StopPeer(peer_id))
            return
        peer = Peer(peer_id, job, rank, host, event.pid, host if node is None else node)
        self._peers[peer_id] = peer
        job.size = max(job.size, event.size)
        if isinstance(job, WorkerJob):
            self._lifecycle.join(peer, job, event.slots)
            return
        job.peers[rank] = peer
        if job.began is None:
            job.began = self._timers.now
        task = job.task
        if isinstance(task, CommandTask) or task.state == TaskState.DONE:
            self._out.append(StopPeer(peer_id))
        else:
            task.state = TaskState.ASSIGNED
            self._out.append(AssignTasks(peer_id, 0, [task], [task.function]))

    def _task_outcome(self, event: TaskOutcome) -> None:
        task_id, body = event.task_id, event.body
        worker = self._worker(event.peer, event.slot)
        if worker is None:
            self._outcomes.rank_outcome(event.peer, task_id, body)
            return
        queue = worker.queue
        if queue and queue[0].task_id == task_id:
            task = queue.popleft()
            worker.size -= len(task.call)
            if task.canceled:
                worker.cancels -= 1
        else:
            other = worker.remove(task_id)
            if other is None:
                return
            task = other
        worker.ended += 1
        worker.function_id = task.function.function_id
        if not worker.touched:
            self._assigner.touch(worker)
        task.state = TaskState.DONE
        task.place = None
        if self._is_failure(body):
            self._outcomes.failed += 1
        else:
            self._outcomes.done += 1
        self._out.append(ResolveTask(task, body))

    def _task_returned(self, event: TaskReturned) -> None:
        worker = self._worker(event.peer, event.slot)
        task = worker and worker.remove(event.task_id)
        if not worker or not task:
            return
        group = worker.group
        group.given -= 1
        task.place = None
        if task.canceled:
            self._outcomes.resolve(task, CANCELED)
        elif self._closed:
            self._outcomes.resolve(task, Loss(LossReason.SHUT_DOWN))
        elif worker.peer.verdict is not None:
            self._outcomes.resolve(task, worker.peer.verdict)
        else:
            task.state = TaskState.PENDING
            group.queue.push_back(task)
            self._lifecycle.changed = True
        self._assigner.touch(worker)

    def _worker_died(self, event: WorkerDied) -> None:
        task_id, exit_code, signal, stderr = event.task_id, event.exit_code, event.signal, event.stderr
        worker = self._worker(event.peer, event.slot)
        if worker is None:
            return
        job = worker.job
        task = worker.remove(task_id) if task_id else None
        worker.mark = self._timers.now
        self._assigner.touch(worker)
        if task is None:
            worker.peer.start_failures += 1
            if worker.peer.start_failures == START_FAILURE_LIMIT:
                self._outcomes.give_up(
                    worker.peer, Loss(LossReason.NO_WORKER, exit_code, signal, stderr, job.host, job=job)
                )
            return
        worker.peer.start_failures = job.group.start_failures = 0
        job.group.given -= 1
        loss = Loss(LossReason.CRASHED, exit_code, signal, stderr, worker.peer.host, job=job)
        self._outcomes.resolve(task, CANCELED if task.canceled else loss)

    def _peer_lost(self, event: PeerLost) -> None:
        peer = self._peers.pop(event.peer, None)
        if peer is None:
            return
        self._lifecycle.lost(peer)
        self._outcomes.peer_lost(peer)

    # -- the end -----------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """End everything now: every task that has not ended is lost, every job is to end."""
        if self._closed:
            return
        self._closed = True
        loss = Loss(LossReason.SHUT_DOWN)
        for group in self._lifecycle.groups.values():
            for task in group.queue.drain():
                self._outcomes.resolve(task, loss)
        for waiting in (*self._lifecycle.held, *self._outcomes.parked):
            if waiting.task.state != TaskState.DONE:
                self._outcomes.resolve(waiting.task, loss)
        self._lifecycle.held.clear()
        self._outcomes.parked.clear()
        for peer in list(self._peers.values()):
            self._outcomes.lose_queues(peer, loss, loss)
            if isinstance(peer.job, TaskJob) and peer.job.task.state != TaskState.DONE:
                # Its job may have ended already, and nobody will wait for its last words now.
                self._outcomes.resolve(peer.job.task, loss)
        for job in list(self._lifecycle.jobs.values()):
            if isinstance(job, WorkerJob):
                for peer in job.peers.values():
                    self._outcomes.lose_queues(peer, loss, loss)
                self._lifecycle.leave(job)
                if not job.busy and job.connected:
                    self._lifecycle.retire(job)
                    continue
            elif job.task.state != TaskState.DONE:
                self._outcomes.resolve(job.task, loss)
            self._lifecycle.cancel(job, "the executor is being shut down")

    def status(self) -> Status:
        """Count."""
        lifecycle = self._lifecycle
        groups = lifecycle.groups.values()
        jobs = list(self._worker_jobs())
        running = sum(job.busy for job in jobs)
        own = sum(job.task.state != TaskState.DONE for job in lifecycle.task_jobs)
        waiting = (*lifecycle.held, *self._outcomes.parked)
        unanswered = sum(group.outstanding for group in groups) - sum(w.ended for w in self._assigner.touched)
        return Status(
            pending=unanswered - running + sum(job.task.state != TaskState.DONE for job in waiting),
            running=running + own,
            done=self._outcomes.done,
            failed=self._outcomes.failed,
            canceled=self._outcomes.canceled,
            workers={group.shape: group.workers for group in groups if group.jobs},
            busy_workers={group.shape: len(group.busy) for group in groups if group.jobs},
            cores={
                group.shape: sum(job.allocation.cores for job in group.jobs) for group in groups if group.jobs
            },
            worker_jobs=len(jobs),
            task_jobs=len(lifecycle.task_jobs),
        )

    # -- helpers -----------------------------------------------------------------------------------

    def _worker_jobs(self) -> list[WorkerJob]:
        return [job for group in self._lifecycle.groups.values() for job in group.jobs]

    def _worker(self, peer_id: PeerId, slot: int) -> Worker | None:
        peer = self._peers.get(peer_id)
        if peer is None or slot >= len(peer.workers):
            return None
        return peer.workers[slot]


def _shape(task: Task) -> Shape:
    shape = task.resources.shape
    assert shape is not None
    return shape
