"""Translate a loss, the end of a task without an outcome, into the exception of its future."""

from __future__ import annotations

from parsl_flux_bulk.errors import BlockLost, FluxBulkError, TaskCrashed, WorkerLost
from parsl_flux_bulk.instances.base import EndCause, JobResult, JobStatus
from parsl_flux_bulk.pipeline.job_errors import describe, job_error, signal_name, with_stderr
from parsl_flux_bulk.scheduler.task import Loss, LossReason, Task


def task_error(task: Task, loss: Loss, output: str) -> FluxBulkError:
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
        return f"killed by {signal_name(loss.signal)}"
    if loss.exit_code is not None:
        return f"exit status {loss.exit_code}"
    return describe(loss.result) if loss.result is not None else ""
