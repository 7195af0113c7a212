"""The executor's part inside the completion thread.

It carries events to the scheduler (tasks from `submit`, frames from peers, ends of jobs), and the
scheduler's instructions out: jobs to the pipeline, frames to peers, outcomes to futures. It decides
nothing itself.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from parsl_flux_bulk.errors import ExecutorClosed, InstanceLost, add_note
from parsl_flux_bulk.executor.bash_apps import outcome
from parsl_flux_bulk.executor.job_factory import JobFactory, WorkerSettings
from parsl_flux_bulk.executor.task_errors import task_error
from parsl_flux_bulk.instances.base import Capacity, ChannelAddress, JobId, JobResult, PeerId
from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    CancelJob,
    CapacityChanged,
    JobEnded,
    KillWorker,
    PeerConnected,
    PeerLost,
    RecallTasks,
    ResolveTask,
    StopPeer,
    SubmitJob,
    TaskOutcome,
    TaskReturned,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.state_machine import Scheduler
from parsl_flux_bulk.scheduler.task import Canceled, CommandEnded, Outcome, RankFailed, Task

if TYPE_CHECKING:
    from parsl_flux_bulk.pipeline.pipeline import Pipeline
    from parsl_flux_bulk.scheduler.model import TaskJob, WorkerJob
    from parsl_flux_bulk.scheduler.status import Status

logger = logging.getLogger(__name__)

CONTENDED = 0.0003
"""Seconds of a turn for which others held the interpreter, from which on each turn costs them dearly: every
call of the system's gives it away, and to get it back takes both sides a wake-up."""

GATHER_TIME = 0.005
"""Seconds for which outcomes and new tasks gather then, so that there are fewer turns; not where tasks take
as long, since their workers would wait for us."""

CHAIN_LINK = 2
"""Outcomes and new tasks of a turn at most where each task waits for the one before."""

GATHER_BELOW = 32
"""Outcomes and new tasks of a turn from which on it was worth its price."""

REPORT_PERIOD = 60.0
"""Seconds between two lines of the log about a busy executor."""


class TaskFuture(Future[Any]):
    """An executor's future, whose task can be cancelled while it runs, too.

    Attributes
    ----------
    parsl_executor_task_id : int
        As Parsl logs it beside its own task id.
    """

    def __init__(self, runtime: TaskRuntime, task: Task) -> None:
        super().__init__()
        self.parsl_executor_task_id = task.task_id
        # Weak, so that a future that the user keeps does not keep the arguments of its call.
        self._task = weakref.ref(task)
        self._runtime = weakref.ref(runtime)

    def cancel(self) -> bool:
        """Cancel: a task that waits is dropped, one that runs is ended with its process or job.

        Returns
        -------
        bool
            False if it had ended already.
        """
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        # Tells those who wait for several futures at once.
        self.set_running_or_notify_cancel()
        runtime, task = self._runtime(), self._task()
        if runtime is not None and task is not None:
            runtime.cancel(task)
        return True


@dataclass(frozen=True, slots=True)
class StatusReport:
    """How an executor stands.

    Attributes
    ----------
    tasks : Status
        Tasks by state, and workers and cores by shape.
    active_jobs, waiting_jobs : int
        Jobs inside the instance, and on our side.
    instance : str
    """

    tasks: Status
    active_jobs: int
    waiting_jobs: int
    instance: str


class TaskRuntime:
    """Implements `pipeline.completion.Runtime`; `put`, `cancel` and `status` are for any thread."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._inbox: deque[Task] = deque()
        self._cancels: deque[Task] = deque()
        self._pipeline: Pipeline[WorkerJob | TaskJob] | None = None
        self._scheduler: Scheduler | None = None
        self._builder: JobFactory | None = None
        self._send: Callable[[PeerId, bytes], None] | None = None
        self._setup = frames.encode_json(frames.SETUP, 0, 0, settings.setup())
        self._error: Exception | None = None
        self._outstanding = 0
        self._handled = 0
        self._reported = 0.0

    def bind(self, pipeline: Pipeline[WorkerJob | TaskJob]) -> None:
        """Say where jobs go."""
        self._pipeline = pipeline

    # -- any thread ---------------------------------------------------------------------------

    def put(self, task: Task) -> None:
        """Enqueue a task, and wake the completion thread.

        Raises
        ------
        InstanceLost, ExecutorClosed
        """
        if self._error is not None:
            raise _again(self._error)
        assert self._pipeline is not None
        self._inbox.append(task)
        self._pipeline.wake()
        if self._error is not None:
            self._fail_inbox(self._error)

    def cancel(self, task: Task) -> None:
        """End a task whose future was cancelled."""
        self._cancels.append(task)
        if self._pipeline is not None:
            self._pipeline.wake()

    @property
    def outstanding(self) -> int:
        """Tasks that have not ended."""
        return self._outstanding + len(self._inbox)

    def drain(self, chosen: Callable[[JobId], bool]) -> None:
        """Assign no more tasks to the workers in some jobs."""
        assert self._pipeline is not None
        self._pipeline.call_soon(lambda: self._drain(chosen))

    def _drain(self, chosen: Callable[[JobId], bool]) -> None:
        def is_chosen(job: WorkerJob) -> bool:
            return job.job_id is not None and chosen(job.job_id)

        if self._scheduler is not None:
            self._scheduler.drain_jobs(is_chosen, "its block is to end")

    def fail(self, error: Exception) -> None:
        """Fail all tasks, those that have not ended and those to come."""
        assert self._pipeline is not None
        self._pipeline.call_soon(lambda: self._end(error))

    def status(self) -> StatusReport | None:
        """How it stands; None until the instance is up."""
        if self._scheduler is None or self._pipeline is None:
            return None
        return StatusReport(
            self._scheduler.status(),
            self._pipeline.active_jobs,
            self._pipeline.waiting_jobs,
            self._pipeline.description,
        )

    # -- the completion thread ------------------------------------------------------------------

    def opened(
        self, capacity: Capacity, channel: ChannelAddress, send: Callable[[PeerId, bytes], None]
    ) -> None:
        self._send = send
        self._builder = JobFactory(self._settings, channel.environment)
        assert self._pipeline is not None and self._pipeline.max_active_jobs is not None
        self._scheduler = Scheduler(
            is_failure=serialize.is_failure,
            tasks_per_job=self._settings.tasks_per_job,
            worker_idle_time=self._settings.worker_idle_time,
            max_active_jobs=self._pipeline.max_active_jobs,
        )
        self.resized(capacity)

    def resized(self, capacity: Capacity) -> None:
        assert self._scheduler is not None
        self._scheduler.handle(CapacityChanged(capacity))

    def message(self, peer: PeerId, body: bytes) -> None:
        scheduler = self._scheduler
        assert scheduler is not None
        for kind, slot, id, payload in frames.decode(body):
            if kind == frames.OUTCOME:
                scheduler.handle(TaskOutcome(peer, slot, id, bytes(payload)))
            elif kind == frames.RETURNED:
                scheduler.handle(TaskReturned(peer, slot, id))
            elif kind == frames.HELLO:
                assert self._send is not None
                self._send(peer, self._setup)
                scheduler.handle(PeerConnected(peer, id, slot, **frames.decode_json(payload)))
            elif kind == frames.DIED:
                scheduler.handle(WorkerDied(peer, slot, id, **frames.decode_json(payload)))

    def peer_lost(self, peer: PeerId) -> None:
        assert self._scheduler is not None
        self._scheduler.handle(PeerLost(peer))

    def turn(self) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        # Looked at first: a task comes in before its cancel, and the scheduler must know it by then.
        cancels = len(self._cancels)
        if self._inbox:
            if not self._outstanding:
                self._reported = time.monotonic()
            scheduler.submit(self._drain_inbox())
        for _ in range(cancels):
            scheduler.cancel(self._cancels.popleft())
        self._carry_out(scheduler)
        if self._outstanding and time.monotonic() >= self._reported + REPORT_PERIOD:
            self._reported = time.monotonic()
            logger.info("%s: %s", self._settings.label, self.status())

    def _drain_inbox(self) -> Iterator[Task]:
        while self._inbox:
            self._outstanding += 1
            self._handled += 1
            yield self._inbox.popleft()

    def deadline(self) -> float | None:
        if self._scheduler is None:
            return None
        if self._inbox or self._cancels:
            # They came in after `turn` looked, while the thread was awake: nobody was woken for them.
            return 0.0
        deadline = self._scheduler.deadline()
        if self._outstanding:
            report = self._reported + REPORT_PERIOD
            return report if deadline is None else min(deadline, report)
        return deadline

    def patience(self, waited: float) -> float:
        handled, self._handled = self._handled, 0
        # One task after the other is a chain, whose next link would wait.
        chain = handled <= CHAIN_LINK and self._outstanding <= 1
        worth_while = waited > CONTENDED and handled < GATHER_BELOW and not chain
        if worth_while and self._scheduler is not None and self._scheduler.service_time < GATHER_TIME:
            return GATHER_TIME
        return 0.0

    def lost(self, error: InstanceLost) -> None:
        self._end(error)

    def close(self) -> None:
        self._end(ExecutorClosed("the executor was shut down"))

    # -- JobOwner ---------------------------------------------------------------------------------

    def _submit(self, job: WorkerJob | TaskJob) -> None:
        assert self._builder is not None and self._pipeline is not None
        try:
            self._pipeline.submit(job, self._builder.request(job))
        except Exception as error:
            self.job_ended(job, JobFactory.refusal(error))

    def job_submitted(self, job: WorkerJob | TaskJob) -> None:
        logger.debug("%r is job %s", job, job.name)

    def job_ended(self, job: WorkerJob | TaskJob, result: JobResult) -> None:
        assert self._builder is not None and self._scheduler is not None
        stderr = self._builder.collect_output(job, failed=not result.ok)
        if stderr and not result.stderr:
            result = replace(result, stderr=stderr)
        self._scheduler.handle(JobEnded(job, result))

    # -- instructions -------------------------------------------------------------------------------

    def _carry_out(self, scheduler: Scheduler) -> None:
        """Carry out instructions until there are none; messages to one peer travel together."""
        while instructions := scheduler.take(time.monotonic()):
            outgoing: dict[PeerId, list[bytes]] = {}
            resolved: list[ResolveTask] = []
            for instruction in instructions:
                if isinstance(instruction, ResolveTask):
                    resolved.append(instruction)
                elif isinstance(instruction, SubmitJob):
                    self._submit(instruction.job)
                elif isinstance(instruction, CancelJob):
                    assert self._pipeline is not None
                    self._pipeline.cancel(instruction.job, instruction.reason)
                else:
                    outgoing.setdefault(instruction.peer, []).extend(_frames(instruction))
            assert self._send is not None
            for peer, parts in outgoing.items():
                self._send(peer, b"".join(parts))
            # Futures last: their callbacks run here, while the workers run what they were just sent.
            for resolve in resolved:
                self._resolve(resolve.task, resolve.outcome)

    def _resolve(self, task: Task, outcome: Any) -> None:
        self._outstanding -= 1
        self._handled += 1
        result, error = self._read(task, outcome)
        _set(task.future, result, error)

    def _read(self, task: Task, end: Outcome) -> tuple[Any, BaseException | None]:
        if isinstance(end, bytes):
            return serialize.read_outcome(end)
        if self._error is not None:
            return None, self._error
        if isinstance(end, Canceled):
            return None, ExecutorClosed("the task was cancelled")
        if isinstance(end, RankFailed):
            _, error = serialize.read_outcome(end.body)
            return None, _on_rank(error, end.rank)
        if isinstance(end, CommandEnded):
            return self._read_command(end)
        return None, task_error(task, end, self._settings.output)

    def _read_command(self, ended: CommandEnded) -> tuple[Any, BaseException | None]:
        assert self._builder is not None
        job = ended.job
        paths = zip(("stdout", "stderr"), self._builder.output_paths(job), strict=True)
        places = [f"{which} in {path}" for which, path in paths if "{{" in path or os.path.exists(path)]
        try:
            return outcome(ended.command, ended.result, job.name, places)
        except Exception as error:  # from a File of the user's own making, say
            return None, error

    def _end(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if self._scheduler is not None:
            self._scheduler.shutdown()
            self._carry_out(self._scheduler)
        self._cancels.clear()
        self._fail_inbox(self._error)

    def _fail_inbox(self, error: Exception) -> None:
        while self._inbox:
            try:
                task = self._inbox.popleft()
            except IndexError:
                return
            _set(task.future, None, error)


def _again(error: Exception) -> Exception:
    """The same error, without the traceback of another time that it was raised."""
    again = copy.copy(error)
    again.__traceback__ = None
    return again


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


def _set(future: Future[Any], result: Any, error: BaseException | None) -> None:
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except InvalidStateError:
        pass  # cancelled meanwhile


def _on_rank(error: BaseException | None, rank: int) -> BaseException | None:
    if error is not None:
        add_note(error, f"raised on rank {rank}")
    return error
