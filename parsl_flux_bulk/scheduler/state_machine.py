"""The scheduler: a pure state machine that takes events and answers with instructions.

::

    submit, cancel, ... ──────┐                     ┌─> SubmitJob, CancelJob        to the pipeline
    CapacityChanged, JobEnded ┤                     │
    PeerConnected, PeerLost ──┼──> Scheduler.take ──┼─> AssignTasks, RecallTasks,
    TaskOutcome, TaskReturned ┤    Autoscaler: jobs │   KillWorker, StopPeer        to peers
    WorkerDied ───────────────┘    Assigner: tasks  └─> ResolveTask                 to futures

There are no threads, no I/O and no clock here: `take` is told the time, and `deadline` returns when the next
`take` is due even if nothing happens. Events only record; `take` decides, once for all events of a batch.

**No task runs twice.** A task is with one worker or task job at a time, and is taken from it only when the
manager reports that it has not started (`TaskReturned`). A lost manager reports nothing, and outcomes may be
lost with it: all its tasks end with a :class:`.Loss`. The first task of each worker was running, as far as
the scheduler knows (``WORKER_LOST``); the others may have been (``MAYBE_STARTED``). They are few:
:mod:`.service_time` bounds a worker's queue to 40 ms of work, and tasks queued behind a longer one are
recalled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from parsl_flux_bulk.instances.base import PeerId
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.scheduler.assignment import Assigner
from parsl_flux_bulk.scheduler.autoscaler import Autoscaler
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
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
    UsageReported,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.model import NO_LIMIT, Peer, TaskJob, Worker, WorkerJob
from parsl_flux_bulk.scheduler.outcomes import Outcomes
from parsl_flux_bulk.scheduler.states import PeerState, TaskJobState, TaskState, WorkerJobState
from parsl_flux_bulk.scheduler.status import Status, count, demand, managers
from parsl_flux_bulk.scheduler.story import Record, Story
from parsl_flux_bulk.scheduler.survey import Surveyor
from parsl_flux_bulk.scheduler.task import CANCELED, CommandTask, Failed, Loss, LossReason, Task
from parsl_flux_bulk.scheduler.timers import Timers

START_FAILURE_LIMIT = 3
"""Deaths in a row of a manager's workers, none while a task ran, after which its job is retired."""


class Scheduler:
    """The state machine. Nothing is submitted before the first `CapacityChanged`.

    Parameters
    ----------
    is_failure : callable
        Tells whether a serialized outcome is an exception.
    tasks_per_job : int or None
        1 gives every task a job of its own.
    worker_idle_time : float
        Seconds after which workers without tasks end; infinite for never.
    max_active_jobs : int
        Jobs that the pipeline keeps inside the instance; twice as many task jobs are submitted.
    max_workers : int or None
        Bound on the workers of one shape.
    max_workers_per_node : int or None
        The same on one node.
    gather_time : float
        Seconds that a shape's first job waits for more tasks.

    Attributes
    ----------
    lifecycle : Lifecycle
        All groups and jobs; for inspection.
    assigner : Assigner
    closed : bool
        Whether `shutdown` was called.
    """

    def __init__(
        self,
        *,
        is_failure: Callable[[bytes], bool],
        tasks_per_job: int | None = None,
        worker_idle_time: float = 3.0,
        max_active_jobs: int = 32,
        max_workers: int | None = None,
        max_workers_per_node: int | None = None,
        gather_time: float = 0.003,
    ) -> None:
        self._is_failure = is_failure
        self._no_workers = tasks_per_job == 1
        self._out: list[Instruction] = []
        self._timers = Timers()
        self._story = Story()
        self.lifecycle = Lifecycle(self._out, self._timers, self._story, worker_idle_time)
        self.lifecycle.allocations.max_workers = max_workers or sys.maxsize
        self.lifecycle.allocations.max_workers_per_node = max_workers_per_node
        self.assigner = Assigner(self._out, self._timers, self._story, self.lifecycle)
        self._autoscaler = Autoscaler(
            self.lifecycle,
            self._timers,
            self._story,
            max_active_jobs=max_active_jobs,
            gather_time=gather_time,
        )
        self._outcomes = Outcomes(self._out, self._timers, self._story, self.lifecycle, is_failure)
        self._surveyor = Surveyor(self._out, self._timers, self._story, self.lifecycle)
        self._peers = self._outcomes.peers
        self.closed = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            CapacityChanged: self._capacity_changed,
            UsageReported: self._usage_reported,
            JobEnded: self._job_ended,
            PeerConnected: self._peer_connected,
            PeerLost: self._peer_lost,
            TaskOutcome: self._task_outcome,
            TaskReturned: self._task_returned,
            WorkerDied: self._worker_died,
        }

    # -- decisions ---------------------------------------------------------------------------------

    def take(self, now: float) -> list[Instruction]:
        """Decide on all events since the last call, and return the instructions, in order.

        Parameters
        ----------
        now : float
            Seconds, of a clock that never goes back.
        """
        now = self._timers.advance(now)
        self.assigner.settle(now)
        self._timers.run()
        if not self.closed:
            self._decide(now)
            self._surveyor.ask(now)
        self._timers.settle()
        self._story.settle(now)
        out = self._out.copy()
        self._out.clear()
        return out

    def _decide(self, now: float) -> None:
        # One decision can call for another: the cores of a group that has no tasks left are free for others.
        for _ in range(4):
            self._autoscaler.scale(now)
            self.assigner.assign(now)
            if not self.lifecycle.changed or self.lifecycle.allocations.capacity is None:
                return
        self._timers.wake(now)

    def deadline(self) -> float | None:
        """Return when `take` is due even if nothing happens; None if never."""
        return self._timers.deadline()

    # -- commands of the executor ------------------------------------------------------------------

    def submit(self, tasks: Iterable[Task]) -> None:
        """Add new tasks."""
        lifecycle = self.lifecycle
        for task in tasks:
            shape = task.resources.shape
            if self.closed:
                self._outcomes.resolve(task, Loss(LossReason.SHUT_DOWN))
            elif isinstance(task, CommandTask) or shape is None or self._no_workers:
                lifecycle.hold(task)
            else:
                group = lifecycle.groups.get(shape)
                (group or lifecycle.group(shape)).queue.push(task)
        lifecycle.changed = True

    def cancel(self, task: Task) -> None:
        """End a task without a result. If it is too late to stop the task, its own outcome stands."""
        if task.state is TaskState.DONE or task.canceled:
            return
        task.canceled = True
        place = task.place
        if isinstance(place, Worker):
            place.cancels += 1
            if place.peer.state is not PeerState.CONNECTED:
                return
            if place.queue[0] is task:
                self.assigner.kill(place, task)
            else:
                self.assigner.recall_one(place, task)
        elif isinstance(place, TaskJob) and place.state not in (TaskJobState.HELD, TaskJobState.PARKED):
            self.lifecycle.cancel(place, "its task was canceled")
        else:
            if place is None and task.resources.shape is not None:
                self.lifecycle.group(task.resources.shape).queue.discard()
            self.lifecycle.changed = True
            self._outcomes.resolve(task, CANCELED)

    def drain_jobs(self, chosen: Callable[[WorkerJob], bool], reason: str) -> None:
        """Give no more tasks to the worker jobs of a block that ends; tasks that have not started move."""
        for job in self._worker_jobs():
            if chosen(job):
                self.lifecycle.drain(job, reason, for_good=True)

    def shutdown(self) -> None:
        """End everything now: tasks that have not ended are lost, all jobs are stopped or canceled."""
        if self.closed:
            return
        self.closed = True
        loss = Loss(LossReason.SHUT_DOWN)
        for group in self.lifecycle.groups.values():
            for task in group.queue.drain():
                self._outcomes.resolve(task, loss)
        for waiting in (*self.lifecycle.held, *self._outcomes.parked):
            self._resolve_if_open(waiting.task, loss)
        self.lifecycle.held.clear()
        self._outcomes.parked.clear()
        for peer in list(self._peers.values()):
            self._outcomes.lose_queues(peer, loss, loss)
            if isinstance(peer.job, TaskJob):
                # The job may have ended already, and nothing waits for the rest of its outcomes now.
                self._resolve_if_open(peer.job.task, loss)
        for job in list(self.lifecycle.jobs.values()):
            if isinstance(job, TaskJob):
                self._resolve_if_open(job.task, loss)
            else:
                for peer in job.peers.values():
                    self._outcomes.lose_queues(peer, loss, loss)
                if not job.busy and job.connected:
                    self.lifecycle.stop(job, "the executor is shut down")
                    continue
            self.lifecycle.cancel(job, "the executor is shut down")

    def _resolve_if_open(self, task: Task, loss: Loss) -> None:
        if task.state is not TaskState.DONE:
            self._outcomes.resolve(task, loss)

    # -- events ------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Record an event; the next `take` decides what follows."""
        self._handlers[type(event)](event)

    def _job_ended(self, event: JobEnded) -> None:
        job, result = event.job, event.result
        if job.token not in self.lifecycle.jobs:
            return
        started = job.state is not WorkerJobState.STARTING
        self.lifecycle.ended(job, result)
        if isinstance(job, TaskJob):
            self._autoscaler.task_job_ended(job, self._timers.now)
            self._outcomes.task_job_ended(job)
        else:
            self._outcomes.worker_job_ended(job, result, started=started)

    def _capacity_changed(self, event: CapacityChanged) -> None:
        lifecycle = self.lifecycle
        lifecycle.allocations.set_capacity(event.capacity)
        lifecycle.changed = True
        self._outcomes.unpark()
        for group in lifecycle.groups.values():
            group.slot_limit = NO_LIMIT
            group.stopped = False

    def _usage_reported(self, event: UsageReported) -> None:
        # Each part of a federation has a scope of its own, and the federation reports what they have in all.
        if not event.scope and event.capacity != self.lifecycle.allocations.capacity:
            self._capacity_changed(CapacityChanged(event.capacity))
        self._surveyor.reported(event)

    def _peer_connected(self, event: PeerConnected) -> None:
        peer_id, rank, host, node = event.peer, event.rank, event.host, event.node
        job = self.lifecycle.jobs.get(event.token)
        if peer_id in self._peers:
            return
        canceling = (WorkerJobState.CANCELING, TaskJobState.CANCELING)
        if job is None or job.state in canceling or self.closed or rank in job.peers:
            self._out.append(StopPeer(peer_id))
            return
        node = host if node is None else node
        peer = Peer(peer_id, job, rank, host, event.pid, node, event.python, event.block)
        self._peers[peer_id] = peer
        job.size = max(job.size, event.size)
        if isinstance(job, WorkerJob):
            self.lifecycle.join(peer, job, event.slots)
            return
        job.peers[rank] = peer
        if job.began is None:
            job.began = self._timers.now
        task = job.task
        if isinstance(task, CommandTask) or task.state is TaskState.DONE:
            self._out.append(StopPeer(peer_id))
            return
        if task.state is TaskState.PENDING:
            task.move_to(TaskState.ASSIGNED)
        self._story.job("assign", job, f"rank {rank} on {host}")
        self._out.append(AssignTasks(peer_id, 0, [task], [task.function]))

    def _task_outcome(self, event: TaskOutcome) -> None:
        task_id, body = event.task_id, event.body
        worker = self._worker(event.peer, event.slot)
        if worker is None:
            self._outcomes.rank_outcome(event.peer, task_id, body, event.times)
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
        self.assigner.unsettled[worker] = None
        task.move_to(TaskState.DONE)
        task.place = None
        if self._is_failure(body):
            self._outcomes.failed += 1
            outcome = Failed(body, worker.job, worker.peer.host)
            self._out.append(ResolveTask(task, outcome, worker, event.times))
        else:
            self._outcomes.done += 1
            self._out.append(ResolveTask(task, body, worker, event.times))

    def _task_returned(self, event: TaskReturned) -> None:
        worker = self._worker(event.peer, event.slot)
        task = worker and worker.remove(event.task_id)
        if not worker or not task:
            return
        group, loss = worker.group, worker.peer.pending_loss
        group.assigned -= 1
        task.place = None
        if task.canceled:
            self._outcomes.resolve(task, CANCELED)
        elif self.closed:
            self._outcomes.resolve(task, Loss(LossReason.SHUT_DOWN))
        elif loss is not None:
            self._outcomes.resolve(task, loss)
        else:
            task.move_to(TaskState.PENDING)
            group.queue.push_back(task)
            self.lifecycle.changed = True
        self.assigner.unsettled[worker] = None

    def _worker_died(self, event: WorkerDied) -> None:
        worker = self._worker(event.peer, event.slot)
        if worker is None:
            return
        peer, job = worker.peer, worker.job
        task = worker.remove(event.task_id) if event.task_id else None
        worker.mark = self._timers.now
        self.assigner.unsettled[worker] = None
        exit_code, signal, stderr = event.exit_code, event.signal, event.stderr
        if task is None:
            peer.start_failures += 1
            if peer.start_failures == START_FAILURE_LIMIT:
                loss = Loss(LossReason.NO_WORKER, exit_code, signal, stderr, job.host, job=job)
                self._outcomes.give_up(peer, loss)
            return
        peer.start_failures = job.group.start_failures = 0
        job.group.assigned -= 1
        loss = Loss(LossReason.CRASHED, exit_code, signal, stderr, peer.host, job=job)
        self._outcomes.resolve(task, CANCELED if task.canceled else loss)

    def _peer_lost(self, event: PeerLost) -> None:
        peer = self._peers.pop(event.peer, None)
        if peer is not None:
            self.lifecycle.lost(peer)
            self._outcomes.peer_lost(peer)

    def _worker(self, peer_id: PeerId, slot: int) -> Worker | None:
        peer = self._peers.get(peer_id)
        if peer is None or slot >= len(peer.workers):
            return None
        return peer.workers[slot]

    def _worker_jobs(self) -> list[WorkerJob]:
        return [job for group in self.lifecycle.groups.values() for job in group.jobs]

    # -- queries -----------------------------------------------------------------------------------

    @property
    def service_time(self) -> float:
        """Mean seconds of a task, in the group where it is largest; 0 before the first outcome."""
        return max((group.service_time.mean for group in self.lifecycle.groups.values()), default=0.0)

    @property
    def has_idle_worker(self) -> bool:
        """Whether any worker waits for a task."""
        return any(group.idle for group in self.lifecycle.groups.values())

    @property
    def nodes(self) -> int:
        """Number of nodes that are up; callable in any thread."""
        return self.lifecycle.allocations.total.nodes

    @property
    def workers(self) -> int:
        """Number of connected workers; callable in any thread."""
        return sum(group.workers for group in list(self.lifecycle.groups.values()))

    def slots(self, resources: Resources) -> int:
        """Return the number of tasks that the empty instance could run at the same time; at least 1."""
        allocations = self.lifecycle.allocations
        if resources.shape is not None:
            return allocations.slots_in_total(resources.shape)
        return max(1, allocations.total.cores // max(1, allocations.of_task(resources).cores))

    def pending(self) -> list[Task]:
        """Return the tasks that no worker has, and that no job has begun."""
        jobs = (*self.lifecycle.held, *self.lifecycle.task_jobs, *self._outcomes.parked)
        tasks = [job.task for job in jobs if job.task.state is TaskState.PENDING]
        return tasks + [task for group in self.lifecycle.groups.values() for task in group.queue.tasks()]

    def status(self) -> Status:
        """Count tasks, workers and jobs."""
        return count(self.lifecycle, self.assigner, self._outcomes)

    def demand(self) -> list[tuple[Resources | Shape, int]]:
        """Return what the tasks that have not ended need; callable in any thread."""
        return demand(self.lifecycle, self._outcomes)

    def managers(self, now: float) -> list[dict[str, Any]]:
        """Describe each manager that is connected; callable in any thread."""
        return managers(self.lifecycle, now)

    def story(self, now: float, task_id: int, task: Task | None = None) -> list[Record]:
        """Return what was decided about a task, its jobs and its group, in order; callable in any thread.

        Parameters
        ----------
        now : float
            The time, as for `take`.
        task : Task or None
            The task, if it has not ended: then the last record says where it is now.
        """
        if task is None or task.state is TaskState.DONE:
            return self._story.of(task_id)
        shape = task.resources.shape if task.place is None else None
        return [*self._story.of(task_id, shape), self._story.now(now, task, self.lifecycle.groups)]
