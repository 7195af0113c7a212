"""What tasks end with, and what is blamed for it.

An outcome that came, a loss, or a cancellation: whatever it is, it goes through :meth:`Outcomes.resolve`,
once. A peer's end and its job's end are two events, in either order: the first takes the peer out of
service, and `GRACE` may pass until the second, because the peer's tells that nothing more will be heard
from it, and the job's how it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from parsl_flux_bulk.instances.base import EndCause, JobResult, PeerId
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.messages import Instruction, ResolveTask
from parsl_flux_bulk.scheduler.model import Peer, TaskJob, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.task import (
    CANCELED,
    CommandEnded,
    CommandTask,
    Loss,
    LossReason,
    Outcome,
    RankFailed,
    Task,
    TaskState,
)
from parsl_flux_bulk.scheduler.timers import Timers

GRACE = 2.0
"""Seconds for which a peer's end waits for its job's, or the other way round."""

START_LIMIT = 3
"""Worker jobs in a row that may end before there was a worker, before their tasks fail."""


class Outcomes:
    """Ends tasks.

    Attributes
    ----------
    peers : dict of PeerId to Peer
        Those that may still say something.
    done, failed, canceled : int
        Tasks that have ended.
    parked : dict of TaskJob to None
        Those whose tasks wait for other blocks than there are.
    """

    def __init__(
        self,
        out: list[Instruction],
        timers: Timers,
        lifecycle: Lifecycle,
        is_failure: Callable[[bytes], bool],
    ) -> None:
        self.peers: dict[PeerId, Peer] = {}
        self.done = self.failed = self.canceled = 0
        self.parked: dict[TaskJob, None] = {}
        self._out = out
        self._timers = timers
        self._lifecycle = lifecycle
        self._is_failure = is_failure

    def resolve(self, task: Task, outcome: Outcome) -> None:
        """End a task. Scheduler.outcome has a faster one of its own."""
        task.state = TaskState.DONE
        task.place = None
        if outcome is CANCELED:
            self.canceled += 1
        elif self._is_good(outcome):
            self.done += 1
        else:
            self.failed += 1
        self._out.append(ResolveTask(task, outcome))

    def _is_good(self, outcome: Outcome) -> bool:
        if isinstance(outcome, bytes):
            return not self._is_failure(outcome)
        return isinstance(outcome, CommandEnded) and outcome.result.ok

    # -- task jobs ---------------------------------------------------------------------------------

    def rank_outcome(self, peer_id: PeerId, task_id: int, body: bytes) -> None:
        """A rank's task has ended: rank 0's outcome is the task's, unless another one fails."""
        peer = self.peers.get(peer_id)
        if peer is None or not isinstance(peer.job, TaskJob) or peer.finished:
            return
        job, task = peer.job, peer.job.task
        if task.task_id != task_id or task.state == TaskState.DONE:
            return
        peer.finished = True
        if peer.rank == 0:
            job.value = body
        if job.size > 1 and self._is_failure(body):
            self.resolve(task, RankFailed(peer.rank, body))
            self._lifecycle.cancel(job, f"rank {peer.rank} failed")
        elif len(job.peers) == job.size and all(other.finished for other in job.peers.values()):
            self.resolve(task, job.value)

    def task_job_ended(self, job: TaskJob) -> None:
        """A task job has ended; its ranks' outcomes may still be on their way."""
        if all(peer.lost or peer.finished for peer in job.peers.values()):
            self._conclude_task_job(job)
        else:
            self._timers.after(GRACE, lambda _: self._conclude_task_job(job))

    def peer_lost(self, peer: Peer) -> None:
        """A peer has gone."""
        job = peer.job
        if isinstance(job, WorkerJob):
            self._await_fate(peer)
        elif job.task.state != TaskState.DONE and not peer.finished:
            if job.result is not None:
                self.task_job_ended(job)
            else:
                self._timers.after(GRACE, lambda _: self._conclude_rank(job, peer))

    def _conclude_rank(self, job: TaskJob, peer: Peer) -> None:
        """A rank was lost, and its job goes on: not for long."""
        if job.task.state == TaskState.DONE or job.result is not None:
            return
        loss = Loss(LossReason.WORKER_LOST, host=peer.host, rank=peer.rank, job=job)
        self.resolve(job.task, CANCELED if job.task.canceled else loss)
        self._lifecycle.cancel(job, f"rank {peer.rank} was lost")

    def _conclude_task_job(self, job: TaskJob) -> None:
        """A task job has ended, and nothing more will be heard from its ranks."""
        for peer in job.peers.values():
            self._forget(peer)
        task, result = job.task, job.result
        if task.state == TaskState.DONE or result is None:
            return
        if task.canceled:
            self.resolve(task, CANCELED)
        elif result.cause is EndCause.BLOCK_LOST and _not_begun(job, result):
            self._lifecycle.hold_again(task)
        elif result.cause is EndCause.NO_BLOCK:
            self.parked[job] = None
        elif isinstance(task, CommandTask):
            self.resolve(task, CommandEnded(task.command, job, result))
        else:
            lost = [peer for peer in job.peers.values() if not peer.finished]
            host = lost[0].host if lost else job.host
            reason = LossReason.REFUSED if _refused(result) else LossReason.JOB_ENDED
            rank = lost[0].rank if len(lost) == 1 else None
            self.resolve(task, _loss(reason, job, host=host, rank=rank))

    def unpark(self) -> None:
        """There are other blocks than before."""
        for job in self.parked:
            if job.task.state != TaskState.DONE:
                self._lifecycle.hold(job.task)
        self.parked.clear()

    # -- losses of workers -------------------------------------------------------------------------

    def worker_job_ended(self, job: WorkerJob, result: JobResult) -> None:
        """A worker job has ended."""
        if job.starting and not job.canceled:
            self._had_no_worker(job, result)
        for peer in job.peers.values():
            self._await_fate(peer)

    def _await_fate(self, peer: Peer) -> None:
        """A peer, or its job, has ended: blame when both have, or after a while."""
        if peer.lost and peer.job.result is not None:
            self._conclude(peer)
        elif not peer.lost or any(worker.queue for worker in peer.workers):
            self._timers.after(GRACE, lambda _: self._conclude(peer))

    def _conclude(self, peer: Peer) -> None:
        """Nothing more will be heard from a pool."""
        self._forget(peer)
        first = _loss(LossReason.WORKER_LOST, peer.job, host=peer.host)
        self.lose_queues(peer, first, replace(first, reason=LossReason.MAYBE_STARTED))

    def _forget(self, peer: Peer) -> None:
        if self.peers.get(peer.peer_id) is peer:
            del self.peers[peer.peer_id]

    def lose_queues(self, peer: Peer, first: Loss, others: Loss) -> None:
        """End all that a pool has: the first of each worker's tasks, and those behind it."""
        for worker in peer.workers:
            loss = first
            worker.group.given -= len(worker.queue)
            for task in worker.queue:
                self.resolve(task, CANCELED if task.canceled else loss)
                loss = others
            worker.queue.clear()
            worker.size = worker.cancels = 0

    def _had_no_worker(self, job: WorkerJob, result: JobResult) -> None:
        """A worker job ended, or was refused, before anyone said hello."""
        group = job.group
        if result.cause is EndCause.BLOCK_LOST:
            return  # no fault of the shape's: other blocks are as good as before
        if not _refused(result):
            self._strike(group, _loss(LossReason.NO_WORKER, job))
        elif group.slots:
            group.stopped = True
        elif job.slots > 1 and result.cause is not EndCause.INSTANCE_LOST:
            # What was too large may be possible in part.
            group.slot_limit = job.slots // 2
        else:
            self._fail_waiting(group, _loss(LossReason.REFUSED, job))

    def give_up(self, peer: Peer, loss: Loss) -> None:
        """The processes of a pool end before they have run anything."""
        job = peer.job
        if isinstance(job, WorkerJob):
            self._lifecycle.drain(job, "its workers cannot start")
            if self._strike(job.group, loss):
                # What it still has to give back has had its chances as well.
                peer.verdict = loss

    def _strike(self, group: WorkerGroup, loss: Loss) -> bool:
        """One more attempt to get a worker has failed; whether it was the last."""
        group.start_failures += 1
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
    # A bare job says nothing when it begins.
    return not result.started or not (job.peers or isinstance(job.task, CommandTask))


def _loss(reason: LossReason, job: WorkerJob | TaskJob, *, host: str = "", rank: int | None = None) -> Loss:
    result = job.result
    if result is None:
        return Loss(reason, host=host, rank=rank, job=job)
    return Loss(reason, result.exit_code, result.signal, result.stderr, host, rank, job, result)
