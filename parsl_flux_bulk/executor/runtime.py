"""The executor's part of the completion thread.

The runtime passes events to the scheduler: tasks from `submit`, messages from peers, ends of jobs. It carries
out the scheduler's instructions: jobs to the pipeline, messages to peers, outcomes to futures. The scheduler
makes all decisions.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from parsl_flux_bulk.errors import ExecutorClosed
from parsl_flux_bulk.executor.bash_apps import outcome
from parsl_flux_bulk.executor.job_factory import JobFactory, WorkerSettings
from parsl_flux_bulk.executor.lost_worker_error import failure, task_error
from parsl_flux_bulk.executor.node_info import NodeInfo
from parsl_flux_bulk.executor.submission_queue import SubmissionQueue, new_error, resolve
from parsl_flux_bulk.executor.task_trace import TaskTrace
from parsl_flux_bulk.instances.base import Capacity, Completion, JobId, JobResult, PeerId, Usage
from parsl_flux_bulk.pipeline.completion import Runtime
from parsl_flux_bulk.pipeline.exit_status_to_error import refused
from parsl_flux_bulk.pipeline.pipeline import Pipeline
from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    CancelJob,
    CapacityChanged,
    Instruction,
    JobEnded,
    KillWorker,
    PeerConnected,
    PeerLost,
    RecallTasks,
    ResolveTask,
    StopPeer,
    SubmitJob,
    Survey,
    TaskOutcome,
    TaskReturned,
    UsageReported,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.model import TaskJob, WorkerJob
from parsl_flux_bulk.scheduler.state_machine import Scheduler
from parsl_flux_bulk.scheduler.status import Status
from parsl_flux_bulk.scheduler.task import Canceled, CommandEnded, Failed, Outcome, Task

TIMES_SIZE = frames.TIMES_SIZE

logger = logging.getLogger(__name__)

TaskPipeline: TypeAlias = Pipeline[WorkerJob | TaskJob]

GIL_WAIT_LIMIT = 0.0003
"""GIL wait per loop iteration (s) above which events are batched. Every system call releases the GIL, and
each side needs a wake-up to get it back. Measured with parsl-perf."""

BATCHING_DELAY = 0.005
"""Seconds for which outcomes and new tasks are batched then. Tasks that take as long are not batched, since
their workers would wait for the next ones."""

CHAIN_LIMIT = 2
"""Outcomes and new tasks per loop iteration, at most, where each task waits for the one before."""

LARGE_BATCH = 32
"""Outcomes and new tasks per loop iteration from which on the iteration is worth its cost."""

REPORT_PERIOD = 60.0
"""Seconds between two lines of the log about a busy executor."""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The counts of an executor at one moment.

    Attributes
    ----------
    tasks : Status
        Tasks by state; workers and cores by shape.
    active_jobs, waiting_jobs : int
        Jobs inside the instance, and jobs that wait in this process.
    instance : str
        One line about the instance.
    """

    tasks: Status
    active_jobs: int
    waiting_jobs: int
    instance: str

    @classmethod
    def of(cls, scheduler: Scheduler, pipeline: TaskPipeline) -> StatusReport:
        """Count now; any thread may."""
        return cls(scheduler.status(), pipeline.active_jobs, pipeline.waiting_jobs, pipeline.description)


class TaskRuntime(Runtime):
    """Connect the scheduler with the submission queue, the pipeline, the peers and the futures.

    Parameters
    ----------
    settings : WorkerSettings
    pipeline : Pipeline
        Where jobs are submitted.
    queue : SubmissionQueue
        Where tasks come from.
    completion : Completion
        Of the thread that creates the runtime, which opens the channel.
    capacity : Capacity
    trace : TaskTrace or None
    node_info : NodeInfo or None
        For Parsl's monitoring.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        pipeline: TaskPipeline,
        queue: SubmissionQueue,
        completion: Completion,
        capacity: Capacity,
        trace: TaskTrace | None = None,
        node_info: NodeInfo | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._pipeline = pipeline
        self._queue = queue
        self._send = completion.send
        self._send_from_any_thread = completion.send_from_any_thread
        self._survey = completion.survey
        self._setup = frames.encode_json(frames.SETUP, 0, 0, settings.setup())
        self._job_factory = JobFactory(settings, completion.channel().environment)
        self._scheduler = Scheduler(
            is_failure=serialize.is_failure,
            tasks_per_job=settings.tasks_per_job,
            worker_idle_time=settings.worker_idle_time,
            max_active_jobs=pipeline.max_active_jobs,
            max_workers=settings.max_workers,
            max_workers_per_node=settings.max_workers_per_node,
        )
        self._scheduler.handle(CapacityChanged(capacity))
        self._handled_before = 0
        self._reported = 0.0
        self._awaited = False
        self._postponed: list[Instruction] = []
        self._lone_functions: dict[PeerId, dict[int, int]] = {}
        self._sleeps_until: float | None = None
        self._trace = trace
        self._node_info = node_info
        if trace is not None:
            trace.started(pipeline.description, capacity)
        queue.scheduler = self._scheduler
        queue.turn_at_once = self._turn_at_once

    # -- events -------------------------------------------------------------------------------------

    def resized(self, capacity: Capacity) -> None:
        self._scheduler.handle(CapacityChanged(capacity))
        if self._trace is not None:
            self._trace.resized(capacity)

    def surveyed(
        self,
        usage: Usage,
        holding: list[WorkerJob | TaskJob],
        waiting: dict[WorkerJob | TaskJob, str],
        others: Collection[JobId],
    ) -> None:
        own = self._job_factory.mark
        executors = [cores for mark, cores in usage.executors.items() if mark != own]
        self._scheduler.handle(
            UsageReported(
                usage.capacity, usage.free, holding, waiting, usage.down, usage.scope, others, executors
            )
        )

    def message(self, peer: PeerId, body: bytes) -> None:
        handle = self._scheduler.handle
        for kind, slot, id, payload in frames.decode(body):
            if kind == frames.OUTCOME:
                outcome = bytes(payload[TIMES_SIZE:])
                handle(TaskOutcome(peer, slot, id, outcome, bytes(payload[:TIMES_SIZE])))
            elif kind == frames.RETURNED:
                handle(TaskReturned(peer, slot, id))
            elif kind == frames.HELLO:
                self._hello(peer, id, slot, frames.decode_json(payload))
            elif kind == frames.DIED:
                handle(WorkerDied(peer, slot, id, **frames.decode_json(payload)))

    def _hello(self, peer: PeerId, token: int, workers: int, about: dict[str, Any]) -> None:
        cpus, memory = about.pop("cpus", 1), about.pop("memory", 0)  # for monitoring only
        self._send(peer, self._setup)
        self._scheduler.handle(PeerConnected(peer, token, workers, **about))
        job = self._scheduler.lifecycle.jobs.get(token)
        if job is None:
            return
        if self._trace is not None:
            self._trace.job(job, "started")
        accepted = job.peers.get(about.get("rank", 0))
        if self._node_info is not None and accepted is not None and accepted.peer_id == peer:
            self._node_info.connected(accepted, cpus, memory)

    def peer_lost(self, peer: PeerId) -> None:
        self._scheduler.handle(PeerLost(peer))
        self._lone_functions.pop(peer, None)
        if self._node_info is not None:
            self._node_info.lost(peer)

    def job_submitted(self, job: WorkerJob | TaskJob) -> None:
        logger.debug("submitted job=%s %r", job.name, job)
        if self._trace is not None:
            self._trace.job(job, "submitted")
        if self._node_info is not None:
            self._node_info.job_submitted(job)

    def job_ended(self, job: WorkerJob | TaskJob, result: JobResult) -> None:
        stderr = self._job_factory.collect_output(job, failed=not result.ok)
        if stderr and not result.stderr:
            result = replace(result, stderr=stderr)
        self._scheduler.handle(JobEnded(job, result))
        if self._trace is not None:
            self._trace.job(job, "ended")
        if self._node_info is not None:
            self._node_info.job_ended(job)

    # -- the loop -----------------------------------------------------------------------------------

    def turn(self) -> None:
        queue = self._queue
        if queue.taken == queue.ended:
            self._reported = time.monotonic()  # the period begins when the executor becomes busy
        queue.hand_over(self._scheduler)
        self._carry_out()
        if queue.taken != queue.ended and time.monotonic() >= self._reported + REPORT_PERIOD:
            self._reported = time.monotonic()
            logger.info("%s: %s", self._settings.label, StatusReport.of(self._scheduler, self._pipeline))
        queue.tell_if_idle()
        if self._trace is not None:
            last = queue.error is not None and queue.taken == queue.ended
            self._trace.count(self._scheduler, self._pipeline.waiting_jobs, last=last)

    def _turn_at_once(self) -> bool:
        """Assign a lone task in the thread that submits the task: one wake-up of a thread less.

        Futures are resolved in the completion thread only. Where no thread waits for results, as in a flood,
        tasks are batched instead.
        """
        queue, scheduler = self._queue, self._scheduler
        if queue.taken != queue.ended or queue.error is not None or not self.lock.acquire(blocking=False):
            return False
        try:
            if not self._awaited or self._postponed or not scheduler.has_idle_worker:
                return False
            now = self._reported = time.monotonic()
            scheduler.submit(queue.take())
            for instruction in scheduler.take(now):
                if (
                    self._postponed
                    or not isinstance(instruction, AssignTasks)
                    or not (self._send_to_worker(instruction) or self._send_to_manager(instruction))
                ):
                    self._postponed.append(instruction)
            deadline = self._deadline()
            oversleeps = deadline is not None and deadline < (self._sleeps_until or math.inf)
            return not (self._postponed or oversleeps)
        finally:
            self.lock.release()

    def _send_to_manager(self, assign: AssignTasks) -> bool:
        return self._send_from_any_thread(assign.peer, b"".join(_frames(assign)))

    def _send_to_worker(self, assign: AssignTasks) -> bool:
        """Send a task past the manager, to a worker whose latest lone task had the same function."""
        task = assign.tasks[0]
        function_id, call = task.function.function_id, task.call
        known = self._lone_functions.setdefault(assign.peer, {})
        if known.get(assign.slot) != function_id:
            known[assign.slot] = function_id
            return False
        if assign.functions or assign.forget or len(assign.tasks) > 1 or call[:1] == serialize.WALLTIME:
            return False
        if len(call) > frames.LANE_LIMIT:
            return False
        packet = frames.encode_task(assign.slot, task.task_id, function_id, call, frames.LONE)
        return self._send_from_any_thread(assign.peer, packet, assign.slot)

    def deadline(self) -> float | None:
        # Put after `turn` looked, while the thread was awake: nothing woke the thread.
        self._sleeps_until = 0.0 if self._queue or self._postponed else self._deadline()
        return self._sleeps_until

    def _deadline(self) -> float | None:
        deadlines = [self._scheduler.deadline()]
        if self._queue.taken != self._queue.ended:
            deadlines.append(self._reported + REPORT_PERIOD)
        if self._trace is not None:
            deadlines.append(self._trace.deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def batching_delay(self, gil_wait: float) -> float:
        handled_before, self._handled_before = self._handled_before, self._queue.taken + self._queue.ended
        handled = self._handled_before - handled_before
        chain = handled <= CHAIN_LIMIT and self._queue.taken - self._queue.ended <= 1
        if (
            gil_wait > GIL_WAIT_LIMIT
            and handled < LARGE_BATCH
            and not chain
            and self._scheduler.service_time < BATCHING_DELAY
        ):
            return BATCHING_DELAY
        return 0.0

    # -- instructions -------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        """Carry out instructions until there are none; messages to one peer are sent together."""
        again = True
        while again:
            again = False
            outgoing: dict[PeerId, list[bytes]] = {}
            resolutions: list[ResolveTask] = []
            instructions, self._postponed = self._postponed, []
            instructions += self._scheduler.take(time.monotonic())
            for instruction in instructions:
                if isinstance(instruction, ResolveTask):
                    resolutions.append(instruction)
                elif isinstance(instruction, SubmitJob):
                    self._submit(instruction.job)
                    again = True  # a job that cannot even be submitted has ended
                elif isinstance(instruction, CancelJob):
                    self._pipeline.cancel(instruction.job, instruction.reason)
                elif isinstance(instruction, Survey):
                    self._survey()
                else:
                    outgoing.setdefault(instruction.peer, []).extend(_frames(instruction))
            for peer, parts in outgoing.items():
                self._send(peer, b"".join(parts))
            # Futures last: their callbacks run while the workers run what was just sent.
            trace = self._trace
            if trace is not None and resolutions:
                trace.resolved(resolutions)
            for resolution in resolutions:
                self._queue.ended += 1
                task = resolution.task
                result, error = self._read(task, resolution.outcome)
                self._awaited = getattr(task.future, "is_awaited", False)
                if error is not None and trace is not None:
                    trace.failed(resolution, error)
                resolve(task.future, result, error)

    def _submit(self, job: WorkerJob | TaskJob) -> None:
        try:
            self._pipeline.submit(job, self._job_factory.request(job), self)
        except Exception as error:
            self.job_ended(job, refused(str(error)))

    def _read(self, task: Task, end: Outcome) -> tuple[Any, BaseException | None]:
        """Return the result or the exception that the future of a task ends with."""
        if isinstance(end, bytes):
            return serialize.read_outcome(end)
        if self._queue.error is not None:
            return None, new_error(self._queue.error)
        if isinstance(end, Canceled):
            return None, ExecutorClosed("the task was canceled")
        if isinstance(end, Failed):
            return None, failure(task, end)
        if isinstance(end, CommandEnded):
            return self._read_command(task.task_id, end)
        return None, task_error(task, end, self._settings.output)

    def _read_command(self, task_id: int, end: CommandEnded) -> tuple[Any, BaseException | None]:
        paths = zip(("stdout", "stderr"), self._job_factory.output_paths(end.job), strict=True)
        places = [f"{which} in {path}" for which, path in paths if "{{" in path or os.path.exists(path)]
        try:
            job = end.job
            seconds = (job.t_end or 0.0) - (job.t_submit or 0.0)
            return outcome(end.command, task_id, end.result, job.name, places, seconds)
        except BaseException as error:  # user code runs: a File may be of the user's own class
            return None, error


def _frames(instruction: AssignTasks | RecallTasks | KillWorker | StopPeer) -> list[bytes]:
    if isinstance(instruction, AssignTasks):
        slot = instruction.slot
        parts = [frames.encode(frames.FORGET, 0, function_id) for function_id in instruction.forget]
        parts += [frames.encode(frames.FUNCTION, 0, f.function_id, f.payload) for f in instruction.functions]
        parts += [
            frames.encode_task(slot, t.task_id, t.function.function_id, t.call) for t in instruction.tasks
        ]
        return parts
    if isinstance(instruction, RecallTasks):
        return [frames.encode(frames.RECALL, instruction.slot, instruction.task_id)]
    if isinstance(instruction, KillWorker):
        return [frames.encode(frames.KILL, instruction.slot, instruction.task_id)]
    return [frames.encode(frames.RETIRE)]
