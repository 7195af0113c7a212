"""How a job ended, in words and as an exception."""

from __future__ import annotations

import signal
import textwrap

from parsl_flux_bulk.errors import (
    BlockLost,
    FluxBulkError,
    InstanceLost,
    JobCanceled,
    JobFailed,
    JobRefused,
    JobTimeout,
)
from parsl_flux_bulk.instances.base import EndCause, JobResult, JobStatus


def describe(result: JobResult) -> str:
    """Say in a few words how a job ended, such as "exit status 3" or "killed by SIGKILL"."""
    if result.ok:
        return "completed"
    if result.status is JobStatus.CANCELED:
        return _with_note("cancelled", result.note)
    if result.status is JobStatus.TIMEOUT:
        return _with_note("its duration ran out", result.note)
    if result.cause is EndCause.INSTANCE_LOST:
        return _with_note("the instance was lost", result.note)
    if result.cause is EndCause.BLOCK_LOST:
        return _with_note("its block was lost", result.note)
    if result.refused:
        return _with_note("refused", result.note)
    # Without an exception the note only repeats the exit status, or the signal, in other words.
    reason = _with_note(result.exception, result.note) if result.exception else ""
    if result.signal is not None:
        return _with_note(f"killed by {signal_name(result.signal)}", reason)
    if result.exit_code:
        return _with_note(f"exit status {result.exit_code}", reason)
    return reason or result.note or "failed, and its instance does not say why"


def error_of(result: JobResult, job: str) -> FluxBulkError | None:
    """Return the error that a job's future ends with; None if the job completed.

    Parameters
    ----------
    result : JobResult
    job : str
        The job as a person knows it: its id, what it was made from.
    """
    if result.ok:
        return None
    message = f"{job}: {describe(result)}"
    if result.stderr:
        message += "\nits standard error ended with:\n" + textwrap.indent(result.stderr.rstrip("\n"), "    ")
    if result.cause is EndCause.INSTANCE_LOST:
        return InstanceLost(message)
    if result.cause is EndCause.BLOCK_LOST:
        return BlockLost(message)
    if result.status is JobStatus.CANCELED:
        return JobCanceled(message, result)
    if result.status is JobStatus.TIMEOUT:
        return JobTimeout(message, result)
    if result.refused:
        return JobRefused(message, result)
    return JobFailed(message, result)


def signal_name(number: int) -> str:
    """The name of a signal, such as SIGKILL; "signal 40" where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _with_note(what: str, note: str) -> str:
    return f"{what}: {note}" if note else what
