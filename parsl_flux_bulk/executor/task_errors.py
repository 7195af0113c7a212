"""FairShare a loss, a task that ended without an outcome, into the error that its future ends with."""

from __future__ import annotations

import textwrap

from parsl_flux_bulk.errors import BlockLost, FluxBulkError, TaskCrashed, WorkerLost
from parsl_flux_bulk.instances.base import EndCause, JobStatus
from parsl_flux_bulk.pipeline.job_errors import describe, error_of, signal_name
from parsl_flux_bulk.scheduler.task import Loss, LossReason, Task

_JOBS_OWN = {LossReason.JOB_ENDED, LossReason.REFUSED, LossReason.NO_WORKER}


def error_of_loss(task: Task, loss: Loss, output: str) -> FluxBulkError:
    """Say what happened, to which job, where, how it ended, and where its output is.

    Parameters
    ----------
    output : str
        Directory of the jobs' output.
    """
    name = getattr(task.function, "name", "task")
    what = f"{name} (task {task.task_id})"
    job = loss.job.name if loss.job is not None else ""
    if loss.result is not None and loss.reason in _JOBS_OWN:
        crashed = (
            loss.result.started
            and loss.result.cause is EndCause.EXITED
            and loss.result.status is JobStatus.FAILED
        )
        if not crashed and loss.result.cause is not EndCause.BLOCK_LOST:
            error = error_of(loss.result, f"{what}, job {job}" if job else what)
            if error is not None:
                return error
    ending = _ending(loss)
    parts = [f"{what}: {loss.reason.value}"]
    if ending:
        parts.append(ending)
    if loss.rank is not None:
        parts.append(f"rank {loss.rank}")
    if job:
        parts.append(f"job {job}")
    if loss.host:
        parts.append(f"host {loss.host}")
    parts.append(f"output in {output}")
    message = ", ".join(parts)
    stderr = loss.stderr or (loss.result.stderr if loss.result else "")
    if stderr:
        message += "\nits standard error ended with:\n" + textwrap.indent(stderr.rstrip("\n"), "    ")
    exit_code, signal = loss.exit_code, loss.signal
    if exit_code is None and signal is None and loss.result is not None:
        exit_code, signal = loss.result.exit_code, loss.result.signal
    return _kind(loss)(message, job=job, host=loss.host, exit_code=exit_code, signal=signal, stderr=stderr)


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
