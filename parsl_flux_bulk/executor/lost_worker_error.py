"""Translate failures of tasks, and losses, which are ends without an outcome, into exceptions of futures."""

from __future__ import annotations

from signal import SIGKILL, SIGTERM

from parsl_flux_bulk.errors import BlockLost, TaskCrashed, WorkerLost, add_note
from parsl_flux_bulk.instances.base import EndCause, JobResult, JobStatus
from parsl_flux_bulk.pipeline.exit_status_to_error import (
    STDERR_HEADING,
    describe,
    job_error,
    signal_name,
    with_stderr,
)
from parsl_flux_bulk.protocol import serialize
from parsl_flux_bulk.protocol.app_failure import AppFailed, AppFailure
from parsl_flux_bulk.scheduler.task import CallTask, Failed, Loss, LossReason, Task
from parsl_flux_bulk.worker import bash_runner, lifeline

_SENDERS: dict[int, str] = {
    SIGTERM: " (`flux cancel` and batch systems end jobs so)",
    SIGKILL: " (usually by the kernel, for lack of memory)",
}
"""Who sends a signal to a task that has not asked for it."""


def task_error(task: Task, loss: Loss, output: str) -> Exception:
    """Return an error that names the task, its job and host, how they ended, and where the output is.

    Parameters
    ----------
    output : str
        Directory of the jobs' output.
    """
    what = f"{task.name} (task {task.task_id})"
    job = loss.job.name if loss.job is not None else ""
    result = loss.result
    if result is not None and _explains(result, loss.reason):
        return job_error(result, f"{what}, job {job}" if job else what)
    walltime = _exceeded_walltime(task, loss)
    if walltime is not None:
        place = ", ".join(
            filter(None, (f"job {job}" if job else "", f"host {loss.host}" if loss.host else ""))
        )
        return _app_error(task.name, AppFailed(None, walltime), place)
    parts = [f"{what}: {loss.reason.value}", _ending(loss)]
    parts.append(f"rank {loss.rank}" if loss.rank is not None else "")
    parts.append(f"job {job}" if job else "")
    parts.append(f"host {loss.host}" if loss.host else "")
    parts.append(f"output in {output}")
    exit_code, signal, stderr = loss.exit_code, loss.signal, loss.stderr
    if result is not None:
        stderr = stderr or result.stderr
        if exit_code is None and signal is None:
            exit_code, signal = result.exit_code, result.signal
    message = with_stderr(", ".join(filter(None, parts)), stderr)
    return _kind(loss)(message, job=job, host=loss.host, exit_code=exit_code, signal=signal, stderr=stderr)


def failure(task: Task, end: Failed) -> BaseException:
    """Return the exception of a task that failed: its own, or one that names the task, its job and host."""
    _, error = serialize.read_outcome(end.body)
    assert error is not None
    place = ", ".join(filter(None, (f"job {end.job.name}", f"host {end.host}" if end.host else "")))
    if isinstance(error, AppFailure):
        return _app_error(task.name, error.record, place)
    if end.body[:1] in (serialize.EXITED, serialize.NOT_SERIALIZABLE):
        error.args = (f"{task.name} (task {task.task_id}): {error.args[0]}, {place}",)
    if isinstance(error, TaskCrashed):
        error.job, error.host = end.job.name, end.host
    if end.rank is not None:
        add_note(error, f"raised on rank {end.rank}")
    return error


def _app_error(name: str, record: AppFailed, place: str) -> Exception:
    if record.status is None:
        error = bash_runner.app_timeout(name, record.walltime)
    else:
        error = bash_runner.exit_failure(name, record.status)
    add_note(error, ", ".join(filter(None, (place, record.places))))
    if record.stderr:
        add_note(error, f"{STDERR_HEADING}\n{record.stderr}")
    return error


def _exceeded_walltime(task: Task, loss: Loss) -> float | None:
    """Return the walltime of a call if its watchdog ended it."""
    if not isinstance(task, CallTask) or loss.result is None:
        return None
    number = lifeline.WALLTIME_SIGNAL
    if loss.result.signal != number and loss.result.exit_code != 128 + number:
        return None
    return serialize.split_walltime(memoryview(task.call))[0]


def _explains(result: JobResult, reason: LossReason) -> bool:
    """Whether the end of the job is the error of the task, rather than the end of the task's process."""
    if result.ok or reason not in (LossReason.JOB_ENDED, LossReason.REFUSED, LossReason.NO_WORKER):
        return False
    crashed = result.started and result.cause is EndCause.EXITED and result.status is JobStatus.FAILED
    return not crashed and result.cause is not EndCause.BLOCK_LOST


def _kind(loss: Loss) -> type[TaskCrashed]:
    if loss.result is not None and loss.result.cause is EndCause.BLOCK_LOST:
        return BlockLost
    if loss.reason in (LossReason.WORKER_LOST, LossReason.MAYBE_STARTED):
        return WorkerLost
    return TaskCrashed


def _ending(loss: Loss) -> str:
    if loss.signal is not None:
        return f"killed by {signal_name(loss.signal)}{_SENDERS.get(loss.signal, '')}"
    if loss.exit_code is not None:
        return f"exit status {loss.exit_code}"
    return describe(loss.result) if loss.result is not None else ""
