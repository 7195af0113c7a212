"""What an executor writes to its trace: tasks that ended, jobs, blocks, failures, and counts once a second.

Called in the completion thread, but for `started` and `close`.
"""

from __future__ import annotations

import inspect
import logging
import time
import weakref
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from parsl_flux_bulk.executor.submission_queue import SubmissionQueue
from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.protocol.stderr_tail import last_lines
from parsl_flux_bulk.scheduler.messages import ResolveTask
from parsl_flux_bulk.scheduler.model import TaskJob, Worker, WorkerJob
from parsl_flux_bulk.scheduler.state_machine import Scheduler
from parsl_flux_bulk.scheduler.states import WorkerJobState
from parsl_flux_bulk.scheduler.task import Canceled, CommandEnded, Loss, Task
from parsl_flux_bulk.trace.format import (
    CANCELED,
    COMPLETED,
    FAILED,
    FAILURES_LIMIT,
    HEAD,
    LOST,
    NO_TIMES,
    SHOWN_TASKS,
    TEXT_LENGTH,
    WATCH_TIME,
)
from parsl_flux_bulk.trace.writer import Writer, this_process

logger = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two counts."""

BlockStates = Callable[[], Mapping[str, Mapping[str, Any]]]


class TaskTrace:
    """The trace of one executor.

    Parameters
    ----------
    path : str
    about : mapping
        Fields of the event ``run``.
    queue : SubmissionQueue
        Where requests of other processes go.
    """

    def __init__(self, path: str, about: Mapping[str, Any], queue: SubmissionQueue) -> None:
        self._writer = Writer(path, self._take_request)
        self._queue = queue
        self._finalizer: weakref.finalize[..., object] | None = None
        self._offset = time.time() - time.monotonic()
        self._apps: dict[str, int] = {}
        self._workers: dict[object, int] = {}
        self._last_worker = 0
        self._failures = 0
        self._due = 0.0
        self._changed = False
        self._watched_until = 0.0
        self._block_states: dict[str, str] = {}
        self.blocks: BlockStates | None = None
        self._about = {"kind": "executor", **this_process(), **about}

    def started(self, description: str, capacity: Capacity) -> None:
        """Write where tasks run."""
        self._writer.event("run", {**self._about, "instance": description})
        self.resized(capacity)

    def close(self) -> None:
        """Write that the run ended, and close; bounded in time."""
        self._writer.event("end", {})
        self._writer.close()
        if self._finalizer is not None:
            self._finalizer.detach()  # it would keep the trace, and all that the trace refers to

    def close_with(self, user: object) -> None:
        """Close when `user` is garbage, and at the exit of the interpreter."""
        self._finalizer = weakref.finalize(user, self.close)

    # -- tasks ------------------------------------------------------------------------------------

    def resolved(self, resolutions: list[ResolveTask]) -> None:
        """Write tasks that ended; costs 0.4 us for one that completed in a worker."""
        offset, apps, workers, pack = self._offset, self._apps, self._workers, HEAD.pack
        now = time.time()
        records = []
        for resolution in resolutions:
            task, place = resolution.task, resolution.place
            if type(resolution.outcome) is bytes and place in workers and (app := apps.get(task.name)):
                times = task.submitted + offset, task.assigned + offset
                head = pack(task.task_id, app, workers[place], 0, 0, *times, now)
            else:
                head = self._head(resolution, now)
            records.append(head + (resolution.times or NO_TIMES))
        self._writer.tasks(records)
        self._changed = True

    def _head(self, resolution: ResolveTask, now: float) -> bytes:
        task, place = resolution.task, resolution.place
        return HEAD.pack(
            task.task_id,
            self._apps.get(task.name) or self._new_app(task.name),
            (self._workers.get(place) or self._new_worker(place)) if isinstance(place, Worker) else 0,
            place.token if isinstance(place, TaskJob) else 0,
            _code(resolution),
            task.submitted + self._offset,
            task.assigned + self._offset,
            now,
        )

    def failed(self, resolution: ResolveTask, error: BaseException) -> None:
        """Describe a failure."""
        self._failures += 1
        if self._failures > FAILURES_LIMIT:
            return
        task, place, outcome = resolution.task, resolution.place, resolution.outcome
        result = getattr(getattr(outcome, "job", None), "result", None)
        stderr = getattr(outcome, "stderr", "") or (result.stderr if result is not None else "")
        host = getattr(outcome, "host", "") or (place.peer.host if isinstance(place, Worker) else "")
        self._writer.event(
            "failure",
            {
                "task": task.task_id,
                "app": task.name,
                "type": type(error).__name__,
                "error": str(error)[:TEXT_LENGTH],
                "notes": getattr(error, "__notes__", [])[:5],
                "stderr": last_lines(stderr),
                "host": host,
                "job": place.job.token if isinstance(place, Worker) else getattr(place, "token", 0),
            },
        )

    def _new_app(self, name: str) -> int:
        index = self._apps[name] = len(self._apps) + 1
        self._writer.event("app", {"index": index, "name": name})
        return index

    def _new_worker(self, worker: Worker) -> int:
        self._last_worker += 1
        job, shape = worker.job, worker.group.shape
        if job.state is not WorkerJobState.ENDED:
            self._workers[worker] = self._last_worker
        self._writer.event(
            "worker",
            {
                "index": self._last_worker,
                "name": f"{worker.peer.name}/{worker.slot}",
                "host": worker.peer.host,
                "slot": worker.slot,
                "cores": shape.cores,
                "gpus": shape.gpus,
                "job": job.token,
                "block": worker.peer.block,
            },
        )
        return self._last_worker

    # -- jobs and blocks --------------------------------------------------------------------------

    def job(self, job: WorkerJob | TaskJob, state: str) -> None:
        """Write where a job is: submitted, started or ended."""
        began = job.since if isinstance(job, WorkerJob) and job.peers else getattr(job, "began", None)
        fields: dict[str, Any] = {"job": job.token, "id": job.name, "state": state, "host": job.host}
        fields["kind"] = "workers" if isinstance(job, WorkerJob) else "task"
        if isinstance(job, TaskJob):
            fields |= {"task": job.task.task_id, "name": job.task.name}
        else:
            fields["slots"] = job.slots
        fields |= {"cores": job.allocation.cores, "gpus": job.allocation.gpus, "submitted": job.t_submit}
        if began is not None:
            fields["started"] = began + self._offset
        if job.result is not None:
            fields |= {"ended": job.t_end, "status": job.result.status.value, "note": job.result.note}
            if isinstance(job, WorkerJob):
                for worker in job.workers:
                    self._workers.pop(worker, None)
        self._writer.event("job", fields)
        self._changed = True

    def resized(self, capacity: Capacity) -> None:
        """Write the instance's capacity, and what became of the blocks."""
        self._writer.event("capacity", _fields(capacity))
        self._note_blocks()

    def _note_blocks(self) -> None:
        for block_id, fields in (self.blocks() if self.blocks is not None else {}).items():
            state = fields["state"]
            if self._block_states.get(block_id) != state:
                self._block_states[block_id] = state
                ended = {"ended": time.time()} if state == "ended" else {}
                self._writer.event("block", {"block": block_id, **fields, **ended})

    # -- counts -----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """Return when the next count is due; None if nothing has changed."""
        return self._due if self._changed else None

    def count(self, scheduler: Scheduler, waiting_jobs: int, *, last: bool) -> None:
        """Write counts, unless the last ones are recent."""
        now = time.monotonic()
        if now < self._due and not (last and self._changed):
            return
        self._due, self._changed = now + PERIOD, False
        status, reasons = scheduler.status(), scheduler.lifecycle.reasons()
        groups = list(scheduler.lifecycle.groups.values())
        self._note_blocks()
        self._writer.event(
            "status",
            {
                "pending": status.pending,
                "running": status.running,
                "done": status.done,
                "failed": status.failed,
                "canceled": status.canceled,
                "worker_jobs": status.worker_jobs,
                "task_jobs": status.task_jobs,
                "waiting_jobs": waiting_jobs,
                "cores": scheduler.lifecycle.allocations.total.cores,
                "task_job_cores": sum(job.allocation.cores for job in scheduler.lifecycle.task_jobs),
                "held": len(scheduler.lifecycle.held),
                "held_reason": reasons.get(None, ""),
                "shapes": [
                    {
                        "cores": group.shape.cores,
                        "gpus": group.shape.gpus,
                        "workers": group.workers,
                        "busy": len(group.busy),
                        "starting": max(0, group.slots - group.workers),
                        "waiting": group.waiting,
                        "reason": reasons.get(group.shape, ""),
                    }
                    for group in groups
                ],
                "tasks": _tasks_now(scheduler, now) if now < self._watched_until else [],
            },
        )

    # -- requests of other processes, in the writer's thread ----------------------------------------

    def _take_request(self, words: list[str]) -> None:
        if words == ["watch"]:
            self._watched_until = time.monotonic() + WATCH_TIME
        elif len(words) == 2 and words[0] in ("cancel", "story"):
            self._queue.with_task(int(words[1]), _cancel if words[0] == "cancel" else self._tell)
        else:
            raise ValueError("expected watch, cancel ID or story ID")

    def _tell(self, scheduler: Scheduler, task_id: int, task: Task | None) -> None:
        lines = [str(record) for record in scheduler.story(time.monotonic(), task_id, task)]
        self._writer.event("story", {"task": task_id, "lines": lines})


def open_trace(path: str, about: Mapping[str, Any], queue: SubmissionQueue) -> TaskTrace | None:
    """Return the trace of an executor, or None where the file cannot be made: tasks run without it."""
    try:
        return TaskTrace(path, about, queue)
    except OSError as error:
        logger.warning("no trace file=%s: %s", path, error)
        return None


def configuration(executor: object) -> dict[str, str]:
    """Return the arguments of an executor as text; of its environment, the names only."""
    names = list(inspect.signature(type(executor)).parameters)
    values = {name: getattr(executor, name) for name in names}
    if values.get("environment"):
        values["environment"] = sorted(values["environment"])
    return {name: repr(value)[:TEXT_LENGTH] for name, value in values.items()}


def _cancel(scheduler: Scheduler, task_id: int, task: Task | None) -> None:
    if task is not None:
        task.future.cancel()


def _code(resolution: ResolveTask) -> int:
    outcome = resolution.outcome
    if isinstance(outcome, bytes):
        return COMPLETED
    if isinstance(outcome, Canceled):
        return CANCELED
    if isinstance(outcome, Loss):
        return LOST
    return COMPLETED if isinstance(outcome, CommandEnded) and outcome.result.ok else FAILED


def _fields(capacity: Capacity) -> dict[str, int]:
    return {"nodes": capacity.nodes, "cores": capacity.cores, "gpus": capacity.gpus}


def _tasks_now(scheduler: Scheduler, now: float) -> list[list[Any]]:
    """Name tasks that have not ended: id, app, where, state, seconds in that state."""
    found: list[list[Any]] = []
    lifecycle = scheduler.lifecycle
    for group in lifecycle.groups.values():
        for worker in islice(group.busy, SHOWN_TASKS):
            task = worker.queue[0] if worker.queue else None
            if task is not None:
                where = f"{worker.peer.name}/{worker.slot}"
                found.append([task.task_id, task.name, where, "running", round(now - task.assigned, 1)])
    for job in islice(lifecycle.task_jobs, SHOWN_TASKS):
        state = "submitted" if job.began is None else "running"
        since = job.task.assigned if job.began is None else job.began
        found.append([job.task.task_id, job.task.name, job.name, state, round(now - since, 1)])
    found = found[:SHOWN_TASKS]
    for job in islice(lifecycle.held, SHOWN_TASKS):
        found.append([job.task.task_id, job.task.name, "", "waiting", round(now - job.task.submitted, 1)])
    for group in lifecycle.groups.values():
        for task in group.queue.first(SHOWN_TASKS):
            found.append([task.task_id, task.name, "", "waiting", round(now - task.submitted, 1)])
    return found[: 2 * SHOWN_TASKS]
