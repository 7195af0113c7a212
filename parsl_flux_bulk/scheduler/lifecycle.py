"""Lifecycle of jobs, peers and workers: what each change of state entails.

Other modules decide when. Each change here keeps four counts in step: the slots that a group can count on
(`WorkerGroup.slots`), its workers that get tasks (`idle`, `busy`), the workers of a job that have tasks
(`WorkerJob.busy`), and what the jobs hold (:class:`.Allocations`).
"""

from __future__ import annotations

import math
from collections import Counter, deque

from parsl_flux_bulk.instances.base import JobResult
from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.capacity import Allocations
from parsl_flux_bulk.scheduler.messages import CancelJob, Instruction, RecallTasks, StopPeer, SubmitJob
from parsl_flux_bulk.scheduler.model import Peer, TaskJob, Worker, WorkerGroup, WorkerJob
from parsl_flux_bulk.scheduler.states import PeerState, TaskJobState, WorkerJobState, WorkerState
from parsl_flux_bulk.scheduler.story import Story
from parsl_flux_bulk.scheduler.task import Task
from parsl_flux_bulk.scheduler.timers import Timers

STOP_TIMEOUT = 15.0
"""Seconds after which a job whose peers were told to exit is canceled."""


class Lifecycle:
    """All jobs that have not ended, and the worker groups.

    Attributes
    ----------
    groups : dict of Shape to WorkerGroup
    held : deque of TaskJob
        Those that are not submitted.
    jobs : dict of int to WorkerJob or TaskJob
        Submitted and not ended, by token.
    task_jobs : dict of TaskJob to None
        Submitted and not ended.
    allocations : Allocations
    changed : bool
        Something happened that may call for other jobs.
    unsettled : bool
        Something waits that the instance may know more about (:mod:`.survey`).
    idled : bool
        A worker job became idle.
    """

    def __init__(self, out: list[Instruction], timers: Timers, story: Story, idle_time: float) -> None:
        self.groups: dict[Shape, WorkerGroup] = {}
        self.held: deque[TaskJob] = deque()
        self.jobs: dict[int, WorkerJob | TaskJob] = {}
        self.task_jobs: dict[TaskJob, None] = {}
        self.allocations = Allocations()
        self.changed = False
        self.unsettled = False
        self.idled = False
        self._out = out
        self._timers = timers
        self._story = story
        self._idle_time = idle_time
        self._last_token = 0
        self._node_cores: Counter[object] = Counter()
        self._ambiguous: set[object] = set()

    def group(self, shape: Shape) -> WorkerGroup:
        """Return the group of a shape; create it if there is none."""
        group = self.groups.get(shape)
        if group is None:
            group = self.groups[shape] = WorkerGroup(shape)
        return group

    def reasons(self) -> dict[Shape | None, str]:
        """Return why tasks wait: those of each shape, and (None) those that need a job of their own."""
        waiting = [group for group in self.groups.values() if group.waiting]
        return {None: self._story.reason(None)} | {g.shape: self._story.reason(g) for g in waiting}

    # -- jobs begin and end ------------------------------------------------------------------------

    def hold(self, task: Task, *, first: bool = False) -> None:
        """Make a task job, to be submitted when there is room: after the others, or before them."""
        self._last_token += 1
        job = TaskJob(self._last_token, self.allocations.of_task(task.resources), task)
        task.place = job
        if first:
            self.held.appendleft(job)
        else:
            self.held.append(job)
        self.changed = self.unsettled = True

    def submit_task_job(self, job: TaskJob) -> None:
        """Submit a task job."""
        # The capacity may have changed since the job was made.
        job.allocation = self.allocations.of_task(job.task.resources)
        job.move_to(TaskJobState.SUBMITTED)
        job.task.assigned = self._timers.now
        self.task_jobs[job] = None
        self._submit(job)

    def submit_worker_job(self, group: WorkerGroup, slots: int) -> None:
        """Submit a job of so many workers."""
        self._last_token += 1
        allocation = self.allocations.of_workers(group.shape, slots)
        unit = self.allocations.unit(group.shape)
        job = WorkerJob(self._last_token, allocation, group, slots, self._timers.now, unit)
        group.jobs[job] = None
        group.slots += slots
        self._submit(job)

    def _submit(self, job: WorkerJob | TaskJob) -> None:
        self.jobs[job.token] = job
        self.unsettled = True
        self.allocations.count(job.allocation, 1, task=isinstance(job, TaskJob))
        self._out.append(SubmitJob(job))
        self._story.job("submit", job, f"{job.allocation.cores} cores, {job.allocation.gpus} GPUs")

    def ended(self, job: WorkerJob | TaskJob, result: JobResult) -> None:
        """Take a job that ended out of all counts; its workers get nothing any more."""
        self._story.proceeds(job)
        self._story.job("end", job, result.note or result.exception or result.status.value)
        job.result = result
        del self.jobs[job.token]
        self.allocations.count(job.allocation, -1, task=isinstance(job, TaskJob))
        if isinstance(job, TaskJob):
            job.move_to(TaskJobState.ENDED)
            del self.task_jobs[job]
        else:
            self._enter(job, WorkerJobState.ENDED)
            self.allocations.count_leaving(job.allocation, -1)
            for timer in (job.end_timer, job.idle_timer):
                if timer is not None:
                    timer.cancel()
            del job.group.jobs[job]
        for peer in job.peers.values():
            self._dismiss(peer, PeerState.JOB_ENDED)
        self.changed = True

    def cancel(self, job: WorkerJob | TaskJob, reason: str) -> None:
        """Cancel a submitted job, unless it ended or was canceled before."""
        if isinstance(job, WorkerJob):
            if job.state in (WorkerJobState.CANCELING, WorkerJobState.ENDED):
                return
            self._enter(job, WorkerJobState.CANCELING)
        elif job.state is not TaskJobState.SUBMITTED:
            return
        else:
            job.move_to(TaskJobState.CANCELING)
        self._story.job("cancel", job, reason)
        self._out.append(CancelJob(job, reason))

    def _enter(self, job: WorkerJob, state: WorkerJobState) -> None:
        """Move a worker job to a state; its group counts on it in some of them."""
        before = job.available
        job.move_to(state)
        if before and not job.available:
            job.group.slots -= job.live
            self.allocations.count_leaving(job.allocation, 1)
        elif job.available and not before:
            job.group.slots += job.live
            self.allocations.count_leaving(job.allocation, -1)

    # -- peers connect and disconnect --------------------------------------------------------------

    def join(self, peer: Peer, job: WorkerJob, slots: int) -> None:
        """Take in a manager of a worker job."""
        now = self._timers.now
        self._story.job("connect", job, f"manager {peer.rank} on {peer.host}")
        if job.starting:
            job.since = now
            self._enter(job, WorkerJobState.SERVING)
        job.peers[peer.rank] = peer
        peer.workers = [Worker(peer, job, slot) for slot in range(slots)]
        self._node_cores[peer.node] += job.unit.units(slots) * job.unit.cores
        self._note_node(peer.node)
        self.changed = True
        if job.state is WorkerJobState.SERVING:
            for worker in peer.workers:
                self._serve(worker)
            if not job.busy:
                self.note_idle(job, now)
        elif job.state is WorkerJobState.STOPPING:
            self._out.append(StopPeer(peer.peer_id))
        elif not job.busy:
            self.stop(job, "no tasks were left when its manager connected")

    def lost(self, peer: Peer) -> None:
        """Take out a peer whose connection closed."""
        self.changed = True
        job = peer.job
        was_busy = isinstance(job, WorkerJob) and job.busy
        self._dismiss(peer, PeerState.LOST)
        if isinstance(job, TaskJob) or job.state is WorkerJobState.ENDED:
            return
        self._story.job("disconnect", job, f"manager {peer.rank} on {peer.host}")
        if not job.connected and len(job.peers) >= job.size:
            if WorkerJobState.STOPPING in job.state.successors:
                self._enter(job, WorkerJobState.STOPPING)
                self._cancel_later(job)
        elif job.available:
            lost = min(job.live, len(peer.workers))
            job.live -= lost
            job.group.slots -= lost
        if was_busy and not job.busy and job.connected:
            # The lost manager had all its tasks: no outcome of the others will tell that it is idle.
            self.note_idle(job, self._timers.now)

    def _dismiss(self, peer: Peer, state: PeerState) -> None:
        """Withdraw the workers of a peer that was lost, or whose job ended; their queues stay as they are."""
        if peer.state is PeerState.CONNECTED and isinstance(peer.job, WorkerJob):
            unit = peer.job.unit
            self._node_cores[peer.node] -= unit.units(len(peer.workers)) * unit.cores
            if not self._node_cores[peer.node]:
                del self._node_cores[peer.node]
        if state in peer.state.successors:
            peer.move_to(state)
        for worker in peer.workers:
            self._withdraw(worker)
            if worker.state is WorkerState.DRAINING:
                worker.move_to(WorkerState.OFFLINE)
                worker.job.busy -= 1

    # -- nodes -------------------------------------------------------------------------------------

    def nodes_of(self, job: WorkerJob) -> list[object]:
        """Return the nodes that a job occupies, at most; an unknown node counts as one that is not shared."""
        nodes: list[object] = []
        for peer in job.peers.values():
            if peer.node in self._ambiguous:
                nodes += peer.workers
            else:
                nodes.append(peer.node)
        return nodes or [job]

    def _note_node(self, node: object) -> None:
        """Detect nodes of the same name, as several brokers on one machine have."""
        total = self.allocations.total
        if self._node_cores[node] > -(-total.cores // total.nodes):
            self._ambiguous.add(node)

    # -- workers -----------------------------------------------------------------------------------

    def _serve(self, worker: Worker) -> None:
        """Let a worker get tasks."""
        if worker.state is WorkerState.OFFLINE:
            worker.move_to(WorkerState.IDLE)
            worker.group.idle[worker] = None
        else:
            worker.move_to(WorkerState.BUSY)
            worker.group.busy[worker] = None

    def _withdraw(self, worker: Worker) -> None:
        """Let a worker get no more tasks."""
        group = worker.group
        if worker.state is WorkerState.IDLE:
            worker.move_to(WorkerState.OFFLINE)
            del group.idle[worker]
        elif worker.state is WorkerState.BUSY:
            worker.move_to(WorkerState.DRAINING)
            del group.busy[worker]
            group.backlogged.pop(worker, None)

    def recall(self, worker: Worker, reason: str) -> None:
        """Recall the tasks that a worker has not started."""
        worker.recalled = True
        worker.group.backlogged.pop(worker, None)
        self._story.job("recall", worker.job, f"{worker.name}: {reason}")
        self._out.append(RecallTasks(worker.peer.peer_id, worker.slot))

    # -- worker jobs leave, or stay ----------------------------------------------------------------

    def drain(self, job: WorkerJob, reason: str, *, for_good: bool = False) -> None:
        """Give a job no more tasks, and stop it when those that run have ended: now, if none runs."""
        state = WorkerJobState.RETIRING if for_good else WorkerJobState.DRAINING
        if not job.available:
            if for_good and job.state is WorkerJobState.DRAINING:
                self._enter(job, state)
            return
        self.changed = True
        if job.starting:
            self.cancel(job, reason)
            return
        self._enter(job, state)
        self._story.job("drain", job, reason)
        for worker in job.workers:
            self._withdraw(worker)
            connected = worker.peer.state is PeerState.CONNECTED
            if connected and len(worker.queue) > 1 and not worker.recalled:
                self.recall(worker, "its job is to end")
        if not job.busy:
            self.stop(job, reason)

    def keep(self, job: WorkerJob) -> None:
        """Let a draining job serve again."""
        self._enter(job, WorkerJobState.SERVING)
        self._story.job("keep", job, "its cores are not needed elsewhere any more")
        for worker in job.workers:
            if worker.peer.state is PeerState.CONNECTED:
                self._serve(worker)

    def stop(self, job: WorkerJob, reason: str) -> None:
        """Tell the managers of a job without tasks to exit."""
        if WorkerJobState.STOPPING not in job.state.successors:
            return
        self.changed = True
        if not job.connected:
            self.cancel(job, "its workers are not needed any more")
            return
        self._enter(job, WorkerJobState.STOPPING)
        self._story.job("stop", job, reason)
        for peer in job.connected:
            for worker in peer.workers:
                self._withdraw(worker)
            self._out.append(StopPeer(peer.peer_id))
        self._cancel_later(job)

    def _cancel_later(self, job: WorkerJob) -> None:
        reason = f"its managers were told to exit, and the job has not ended within {STOP_TIMEOUT:g} s"
        job.end_timer = self._timers.after(STOP_TIMEOUT, lambda _: self.cancel(job, reason))

    def note_idle(self, job: WorkerJob, now: float) -> None:
        """Note that the last task of a job ended."""
        if job.state in (WorkerJobState.DRAINING, WorkerJobState.RETIRING):
            self.stop(job, "its last task ended")
        if job.state is not WorkerJobState.SERVING:
            return
        job.idle_since = now
        self.idled = True
        if self.held or len(self.groups) > 1:
            self.changed = True
        if job.idle_timer is None and self._idle_time < math.inf:
            # One timer for each job, however often its workers become busy and idle.
            job.idle_timer = self._timers.at(now + self._idle_time, self._check_idle, job)

    def _check_idle(self, job: WorkerJob, now: float) -> None:
        job.idle_timer = None
        if job.busy or job.state is not WorkerJobState.SERVING:
            return
        due = job.idle_since + self._idle_time
        if job.group.waiting and any(worker.state is WorkerState.IDLE for worker in job.workers):
            due = now + max(self._idle_time, 0.01)  # it gets tasks in this pass
        if now >= due:
            self.stop(job, f"idle for {self._idle_time:g} s")
        else:
            job.idle_timer = self._timers.at(due, self._check_idle, job)
