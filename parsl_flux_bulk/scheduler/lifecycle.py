"""Jobs and workers come, serve, leave: the acts; when they are due is decided elsewhere.

Everything here keeps four counts in step: what a group can count on (`WorkerGroup.slots`), who in it can be
given tasks (`WorkerGroup.idle`, `WorkerGroup.busy`), who has any (`WorkerJob.busy`), and what the jobs hold.
"""

from __future__ import annotations

from collections import deque

from parsl_flux_bulk.instances.base import JobResult
from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.capacity import Allocations
from parsl_flux_bulk.scheduler.messages import CancelJob, Instruction, RecallTasks, StopPeer, SubmitJob
from parsl_flux_bulk.scheduler.model import Peer, TaskJob, Worker, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.task import Task
from parsl_flux_bulk.scheduler.timers import Timers

RETIRE_BOUND = 15.0
"""Seconds after which a job that was told to end is canceled."""


class Lifecycle:
    """All jobs that have not ended, and the groups.

    Attributes
    ----------
    groups : dict of Shape to WorkerGroup
    held : deque of TaskJob
        Not submitted yet.
    jobs : dict of int to WorkerJob or TaskJob
        Submitted and not ended, by token.
    task_jobs : dict of TaskJob to None
        Submitted and not ended.
    allocations : Allocations
    idle_time : float
        Seconds after which a worker job without tasks ends.
    changed : bool
        Something happened that may call for other jobs than there are.
    """

    def __init__(self, out: list[Instruction], timers: Timers, idle_time: float) -> None:
        self.groups: dict[Shape, WorkerGroup] = {}
        self.held: deque[TaskJob] = deque()
        self.jobs: dict[int, WorkerJob | TaskJob] = {}
        self.task_jobs: dict[TaskJob, None] = {}
        self.allocations = Allocations()
        self.idle_time = idle_time
        self.changed = False
        self._out = out
        self._timers = timers
        self._last_token = 0
        self._ambiguous: set[object] = set()

    def group(self, shape: Shape) -> WorkerGroup:
        """The group of a shape."""
        group = self.groups.get(shape)
        if group is None:
            group = self.groups[shape] = WorkerGroup(shape)
        return group

    # -- jobs come and go --------------------------------------------------------------------------

    def hold(self, task: Task) -> None:
        """Make a task job, to be submitted when there is room."""
        self._last_token += 1
        job = TaskJob(self._last_token, self.allocations.of_task(task.resources), task)
        task.place = job
        self.held.append(job)
        self.changed = True

    def hold_again(self, task: Task) -> None:
        """Make another task job for a task whose job ended before the task began."""
        self.hold(task)
        self.held.appendleft(self.held.pop())

    def launch_task(self, job: TaskJob) -> None:
        """Submit a task job."""
        # The capacity may have become known, or another one, since it was made.
        job.allocation = self.allocations.of_task(job.task.resources)
        job.submitted = True
        self.jobs[job.token] = job
        self.task_jobs[job] = None
        self.allocations.add(job.allocation, task=True)
        self._out.append(SubmitJob(job))

    def launch_workers(self, group: WorkerGroup, slots: int) -> WorkerJob:
        """Submit a job of so many workers."""
        self._last_token += 1
        allocation = self.allocations.of_workers(group.shape, slots)
        job = WorkerJob(self._last_token, allocation, group, slots, self._timers.now)
        job.submitted = True
        self.jobs[job.token] = job
        group.jobs[job] = None
        group.slots += slots
        self.allocations.add(allocation, task=False)
        self._out.append(SubmitJob(job))
        return job

    def ended(self, job: WorkerJob | TaskJob, result: JobResult) -> None:
        """A job has ended: it holds nothing any more, and its workers cannot be given anything."""
        job.result = result
        del self.jobs[job.token]
        self.allocations.remove(job.allocation, task=isinstance(job, TaskJob))
        if isinstance(job, TaskJob):
            self.task_jobs.pop(job, None)
        else:
            self.leave(job)
            self.allocations.stays(job.allocation)
            for timer in (job.overdue, job.idle_timer):
                if timer is not None:
                    timer.cancel()
            job.group.jobs.pop(job, None)
        for peer in job.peers.values():
            self._dismiss(peer)
        self.changed = True

    def cancel(self, job: WorkerJob | TaskJob, reason: str) -> None:
        """Cancel a job, if it makes sense still."""
        if not job.canceled and job.result is None:
            job.canceled = True
            self._out.append(CancelJob(job, reason))

    # -- peers come and go -------------------------------------------------------------------------

    def join(self, peer: Peer, job: WorkerJob, slots: int) -> None:
        """The pool of a worker job's node is there."""
        now = self._timers.now
        if job.starting:
            job.since = now
        job.peers[peer.rank] = peer
        peer.workers = [Worker(peer, job, slot) for slot in range(slots)]
        self._note_node(peer.node)
        self.changed = True
        if job.leaving:
            if not job.busy:
                self.retire(job)
            return
        for worker in peer.workers:
            self._serve(worker)
        if not job.busy:
            self.note_idle(job, now)

    def lost(self, peer: Peer) -> None:
        """A peer is not connected any more."""
        peer.lost = True
        self.changed = True
        job = peer.job
        was_busy = isinstance(job, WorkerJob) and job.busy
        self._dismiss(peer)
        if not isinstance(job, WorkerJob) or job.result is not None:
            return
        if not job.connected and len(job.peers) >= job.size:
            self.leave(job)
            self._end_by(job)
        elif not job.leaving:
            lost = min(job.live, len(peer.workers))
            job.live -= lost
            job.group.slots -= lost
        if was_busy and not job.busy and job.connected:
            # All that it ran was here: its other pools have nothing to do, and nothing of theirs will end.
            self.note_idle(job, self._timers.now)

    def _dismiss(self, peer: Peer) -> None:
        """A peer, or its job, is gone: its workers serve no more; their queues stay as they are."""
        peer.gone = True
        for worker in peer.workers:
            self.bench(worker)
            if worker.active:
                worker.active = False
                worker.job.busy -= 1

    # -- where they are ----------------------------------------------------------------------------

    def nodes_of(self, job: WorkerJob) -> list[object]:
        """The nodes that a job occupies, at most; one that is not known yet counts as one of its own."""
        nodes: list[object] = []
        for peer in job.peers.values():
            if peer.node in self._ambiguous:
                nodes += peer.workers
            else:
                nodes.append(peer.node)
        return nodes or [job]

    def _note_node(self, node: object) -> None:
        """Nodes that call themselves the same, as several brokers of one machine do, cannot be told apart."""
        total = self.allocations.total
        cores = sum(
            len(peer.workers) * job.shape.cores
            for group in self.groups.values()
            for job in group.jobs
            for peer in job.peers.values()
            if peer.node == node and not peer.lost
        )
        if cores > -(-total.cores // total.nodes):
            self._ambiguous.add(node)

    # -- workers serve, or do not ------------------------------------------------------------------

    def _serve(self, worker: Worker) -> None:
        if worker.serving or worker.peer.start_failures >= START_FAILURE_LIMIT or worker.peer.gone:
            return
        worker.serving = True
        group = worker.group
        (group.busy if worker.queue else group.idle)[worker] = None

    def bench(self, worker: Worker) -> None:
        """AssignTasks a worker no more tasks, for now."""
        if worker.serving:
            worker.serving = False
            group = worker.group
            group.idle.pop(worker, None)
            group.busy.pop(worker, None)
            group.laden.pop(worker, None)

    def recall(self, worker: Worker) -> None:
        """Ask back what a worker has not started."""
        worker.recalled = True
        worker.group.laden.pop(worker, None)
        self._out.append(RecallTasks(worker.peer.peer_id, worker.slot))

    # -- worker jobs leave, or stay after all ------------------------------------------------------

    def leave(self, job: WorkerJob) -> None:
        """A job will be gone before long: do not count on it."""
        if not job.leaving:
            job.leaving = True
            job.group.slots -= job.live
            self.allocations.leaves(job.allocation)

    def drain(self, job: WorkerJob, reason: str) -> None:
        """Let a job end as soon as what it runs has: now, if that is nothing."""
        if job.leaving:
            return
        self.leave(job)
        self.changed = True
        if job.starting:
            self.cancel(job, reason)
            return
        for peer in job.peers.values():
            for worker in peer.workers:
                self.bench(worker)
                if len(worker.queue) > 1 and not worker.recalled and not peer.gone:
                    self.recall(worker)
        if not job.busy:
            self.retire(job)

    def keep(self, job: WorkerJob) -> None:
        """A job that was drained is not needed elsewhere after all."""
        job.leaving = False
        job.group.slots += job.live
        self.allocations.stays(job.allocation)
        for peer in job.peers.values():
            for worker in peer.workers:
                self._serve(worker)

    def can_keep(self, job: WorkerJob) -> bool:
        """Whether it leaves, but could still stay."""
        return (
            job.leaving
            and not (job.retired or job.canceled or job.ends_with_block)
            and job.result is None
            and any(not peer.gone for peer in job.peers.values())
            and all(peer.start_failures < START_FAILURE_LIMIT for peer in job.peers.values())
        )

    def retire(self, job: WorkerJob) -> None:
        """Tell a job without tasks to end."""
        self.leave(job)
        self.changed = True
        if not job.connected:
            self.cancel(job, "its workers are not needed any more")
        for peer in job.connected:
            for worker in peer.workers:
                self.bench(worker)
            self._out.append(StopPeer(peer.peer_id))
        job.retired = True
        self._end_by(job)

    def _end_by(self, job: WorkerJob) -> None:
        """Cancel a job if it does not end by itself before long."""
        if job.overdue is None:
            reason = "it was told to end, and has not"
            job.overdue = self._timers.after(RETIRE_BOUND, lambda _: self.cancel(job, reason))

    def note_idle(self, job: WorkerJob, now: float) -> None:
        """The last task of a job has ended."""
        if job.leaving:
            if not (job.retired or job.canceled or job.starting) and job.result is None:
                self.retire(job)
            return
        job.idle_since = now
        if self.held or len(self.groups) > 1:
            self.changed = True
        if job.idle_timer is None:
            # One timer for each job, however often its workers become busy and idle.
            job.idle_timer = self._timers.at(now + self.idle_time, lambda now: self._look_idle(job, now))

    def _look_idle(self, job: WorkerJob, now: float) -> None:
        job.idle_timer = None
        if job.busy or job.leaving:
            return
        due = job.idle_since + self.idle_time
        if job.group.waiting and any(
            worker.serving for peer in job.peers.values() for worker in peer.workers
        ):
            due = now + max(self.idle_time, 0.01)  # it is about to be fed
        if now >= due:
            self.retire(job)
        else:
            job.idle_timer = self._timers.at(due, lambda now: self._look_idle(job, now))


START_FAILURE_LIMIT = 3
"""Deaths of a pool's processes in a row, none while a task ran, after which the pool is given up."""
