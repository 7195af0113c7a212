"""Outcomes of tasks: what a task ends with, and which loss is blamed.

Every task ends once, through :meth:`Outcomes.resolve`: with an outcome that arrived, a loss, or canceled.
The end of a peer and the end of its job are two events, in either order. The first takes the peer out of
service; the scheduler waits up to `GRACE` for the second, because only the peer's end tells that no outcome
can arrive any more, and only the job's tells how it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from parsl_flux_bulk.instances.base import EndCause, JobResult, PeerId
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.messages import Instruction, ResolveTask, StopPeer
from parsl_flux_bulk.scheduler.model import NO_LIMIT, Peer, TaskJob, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.states import PeerState, TaskJobState, TaskState
from parsl_flux_bulk.scheduler.story import Story
from parsl_flux_bulk.scheduler.task import (
    CANCELED,
    CommandEnded,
    CommandTask,
    Failed,
    Loss,
    LossReason,
    Outcome,
    Task,
)
from parsl_flux_bulk.scheduler.timers import Timers

GRACE = 2.0
"""Seconds for which the end of a peer waits for that of its job, or the other way round."""

START_LIMIT = 3
"""Attempts in a row to start workers that may fail before the waiting tasks fail."""


class Outcomes:
    """Ends tasks.

    Attributes
    ----------
    peers : dict of PeerId to Peer
        Those from which messages may still arrive.
    done, failed, canceled : int
        Tasks that ended.
    parked : dict of TaskJob to None
        Those whose tasks wait for other blocks.
    """

    def __init__(
        self,
        out: list[Instruction],
        timers: Timers,
        story: Story,
        lifecycle: Lifecycle,
        is_failure: Callable[[bytes], bool],
    ) -> None:
        self.peers: dict[PeerId, Peer] = {}
        self.done = self.failed = self.canceled = 0
        self.parked: dict[TaskJob, None] = {}
        self._out = out
        self._timers = timers
        self._story = story
        self._lifecycle = lifecycle
        self._is_failure = is_failure

    def resolve(self, task: Task, outcome: Outcome) -> None:
        """End a task. `Scheduler` has a faster way for the outcomes of workers."""
        task.move_to(TaskState.DONE)
        place, task.place = task.place, None
        if outcome is CANCELED:
            self.canceled += 1
            self._story.task("end", task, "canceled")
        elif self._is_good(outcome):
            self.done += 1
        else:
            self.failed += 1
            if isinstance(outcome, Loss):
                self._story.task("end", task, outcome.reason.value, outcome.job)
        times = place.times if isinstance(place, TaskJob) else b""
        self._out.append(ResolveTask(task, outcome, place, times))

    def _lose(self, task: Task, loss: Loss) -> None:
        """End a task with a loss, or as canceled if that was requested."""
        self.resolve(task, CANCELED if task.canceled else loss)

    def _is_good(self, outcome: Outcome) -> bool:
        if isinstance(outcome, bytes):
            return not self._is_failure(outcome)
        return isinstance(outcome, CommandEnded) and outcome.result.ok

    # -- task jobs ---------------------------------------------------------------------------------

    def rank_outcome(self, peer_id: PeerId, task_id: int, body: bytes, times: bytes) -> None:
        """Take the outcome of a rank: that of rank 0 is the task's, unless another rank fails."""
        peer = self.peers.get(peer_id)
        if peer is None or not isinstance(peer.job, TaskJob) or peer.state is PeerState.FINISHED:
            return
        job, task = peer.job, peer.job.task
        if task.task_id != task_id or task.state is TaskState.DONE:
            return
        peer.move_to(PeerState.FINISHED)
        if peer.rank == 0:
            job.value, job.times = body, times
        if job.size > 1 and self._is_failure(body):
            self.resolve(task, Failed(body, job, peer.host, peer.rank))
            self._lifecycle.cancel(job, f"rank {peer.rank} failed")
        elif len(job.peers) == job.size and all(
            other.state is PeerState.FINISHED for other in job.peers.values()
        ):
            failed = job.size == 1 and self._is_failure(job.value)
            self.resolve(task, Failed(job.value, job, peer.host) if failed else job.value)

    def task_job_ended(self, job: TaskJob) -> None:
        """Conclude a task job that ended, when the outcomes of its ranks have arrived."""
        if all(peer.state in (PeerState.LOST, PeerState.FINISHED) for peer in job.peers.values()):
            self._conclude_task_job(job)
        else:
            self._timers.after(GRACE, lambda _: self._conclude_task_job(job))

    def peer_lost(self, peer: Peer) -> None:
        """Blame the loss of a peer, when the end of its job is known."""
        job = peer.job
        if isinstance(job, WorkerJob):
            self._await_both_ends(peer)
        elif job.task.state is not TaskState.DONE and peer.state is not PeerState.FINISHED:
            if job.result is not None:
                self.task_job_ended(job)
            else:
                self._timers.after(GRACE, lambda _: self._conclude_rank(job, peer))

    def _conclude_rank(self, job: TaskJob, peer: Peer) -> None:
        """End a task that lost a rank while its job runs on."""
        if job.task.state is TaskState.DONE or job.result is not None:
            return
        self._lose(job.task, Loss(LossReason.WORKER_LOST, host=peer.host, rank=peer.rank, job=job))
        self._lifecycle.cancel(job, f"rank {peer.rank} was lost")

    def _conclude_task_job(self, job: TaskJob) -> None:
        """End the task of a job that ended, or let it wait for another job."""
        for peer in job.peers.values():
            self._forget(peer)
        task, result = job.task, job.result
        if task.place is not job or result is None:
            return
        if task.canceled:
            self.resolve(task, CANCELED)
        elif result.cause is EndCause.BLOCK_LOST and _not_begun(job, result):
            self._lifecycle.hold(task, first=True)
        elif result.cause is EndCause.NO_BLOCK:
            job.move_to(TaskJobState.PARKED)
            self.parked[job] = None
            self._story.job("park", job, "no block has the time for it")
        elif isinstance(task, CommandTask):
            self.resolve(task, CommandEnded(task.command, job, result))
        else:
            lost = [peer for peer in job.peers.values() if peer.state is not PeerState.FINISHED]
            host = lost[0].host if lost else job.host
            reason = LossReason.REFUSED if _refused(result) else LossReason.JOB_ENDED
            rank = lost[0].rank if len(lost) == 1 else None
            self.resolve(task, _loss(reason, job, host=host, rank=rank))

    def unpark(self) -> None:
        """Make new jobs for the tasks that wait for other blocks."""
        for job in self.parked:
            if job.task.state is not TaskState.DONE:
                self._lifecycle.hold(job.task)
        self.parked.clear()

    # -- losses of workers -------------------------------------------------------------------------

    def worker_job_ended(self, job: WorkerJob, result: JobResult, *, started: bool) -> None:
        """Blame the end of a worker job; `started`: a manager connected, or the job was canceled."""
        if not started:
            self._start_failed(job, result)
        for peer in job.peers.values():
            if peer.state is not PeerState.LOST and any(worker.queue for worker in peer.workers):
                # Not even a manager that outlives its job may run tasks that are about to be lost.
                self._out.append(StopPeer(peer.peer_id))
            self._await_both_ends(peer)

    def _await_both_ends(self, peer: Peer) -> None:
        """Conclude a manager that ended, or whose job ended, when both have, or after `GRACE`."""
        lost = peer.state is PeerState.LOST
        if lost and peer.job.result is not None:
            self._conclude(peer)
        elif not lost or any(worker.queue for worker in peer.workers):
            self._timers.after(GRACE, lambda _: self._conclude(peer))

    def _conclude(self, peer: Peer) -> None:
        """End the tasks of a manager from which no message can arrive any more."""
        self._forget(peer)
        first = _loss(LossReason.WORKER_LOST, peer.job, host=peer.host)
        self.lose_queues(peer, first, replace(first, reason=LossReason.MAYBE_STARTED))

    def _forget(self, peer: Peer) -> None:
        if self.peers.get(peer.peer_id) is peer:
            del self.peers[peer.peer_id]

    def lose_queues(self, peer: Peer, first: Loss, others: Loss) -> None:
        """End all tasks of a manager: the first of each worker with one loss, the others with another."""
        for worker in peer.workers:
            loss = first
            worker.group.assigned -= len(worker.queue)
            for task in worker.queue:
                self._lose(task, loss)
                loss = others
            worker.queue.clear()
            worker.size = worker.cancels = 0

    def _start_failed(self, job: WorkerJob, result: JobResult) -> None:
        """Evaluate that a worker job ended, or was refused, before a manager connected."""
        group = job.group
        if result.cause is EndCause.BLOCK_LOST:
            return  # says nothing about the shape: other blocks are as good as before
        if not _refused(result):
            self._count_failure(group, _loss(LossReason.NO_WORKER, job))
        elif job.slots > 1 and result.cause is not EndCause.INSTANCE_LOST:
            # A smaller job may be possible.
            group.slot_limit = min(group.slot_limit, job.slots // 2)
            self._story.group("limit", group, f"the instance refused a job of {job.slots} workers")
        else:
            group.slot_limit = NO_LIMIT  # its size was not the reason
            if group.slots:
                group.stopped = True
            else:
                self._fail_waiting(group, _loss(LossReason.REFUSED, job))

    def give_up(self, peer: Peer, loss: Loss) -> None:
        """Retire the job of a manager whose workers end before they run anything."""
        job = peer.job
        if isinstance(job, WorkerJob):
            self._lifecycle.drain(job, "its workers cannot start", for_good=True)
            if self._count_failure(job.group, loss):
                # What the manager still has to return has had its attempts as well.
                peer.pending_loss = loss

    def _count_failure(self, group: WorkerGroup, loss: Loss) -> bool:
        """Count a failed attempt to start workers; return whether the waiting tasks failed with it."""
        group.start_failures += 1
        self._story.group("start-failure", group, f"{group.start_failures} in a row, {START_LIMIT} allowed")
        if group.start_failures < START_LIMIT:
            return False
        group.start_failures = 0
        if group.workers:
            group.stopped = True
            return False
        self._fail_waiting(group, loss)
        return True

    def _fail_waiting(self, group: WorkerGroup, loss: Loss) -> None:
        for task in group.queue.drain():
            self.resolve(task, loss)


def _refused(result: JobResult) -> bool:
    return result.refused or (not result.started and result.cause is EndCause.INSTANCE_LOST)


def _not_begun(job: TaskJob, result: JobResult) -> bool:
    # The job of a command has no peer that reports its start.
    return not result.started or not (job.peers or isinstance(job.task, CommandTask))


def _loss(reason: LossReason, job: WorkerJob | TaskJob, *, host: str = "", rank: int | None = None) -> Loss:
    result = job.result
    if result is None:
        return Loss(reason, host=host, rank=rank, job=job)
    return Loss(reason, result.exit_code, result.signal, result.stderr, host, rank, job, result)
