"""The end of a job, in words and as an exception, and the results of jobs that never reached the instance."""

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

STDERR_HEADING = "its standard error ended with:"

EXIT_TIMEOUT_HINT = (
    "; set the shell option 'exit-timeout' to 'none', or to a longer time, for ranks of unequal length"
)
"""What to do about a rank that was killed after another one had ended."""


def describe(result: JobResult) -> str:
    """Describe the end of a job in a few words, such as "exit status 3" or "killed by SIGKILL"."""
    if result.ok:
        return "completed"
    if result.status is JobStatus.CANCELED:
        return _with_note("canceled", result.note)
    if result.status is JobStatus.TIMEOUT:
        return _with_note("its duration ran out", result.note)
    if result.cause is EndCause.INSTANCE_LOST:
        return _with_note("the instance was lost", result.note)
    if result.cause is EndCause.BLOCK_LOST:
        return _with_note("its block was lost", result.note)
    if result.refused:
        return _with_note("refused", result.note)
    # Without an exception, the note only repeats the exit status or the signal.
    reason = _with_note(result.exception, result.note) if result.exception else ""
    if "exit-timeout" in reason:
        reason += EXIT_TIMEOUT_HINT
    if result.signal is not None:
        return _with_note(f"killed by {signal_name(result.signal)}", reason)
    if result.exit_code:
        return _with_note(f"exit status {result.exit_code}", reason)
    return reason or result.note or "failed; the instance reported no cause"


def job_error(result: JobResult, job: str) -> FluxBulkError:
    """Return the error that the future of a job ends with; the job must not have completed.

    Parameters
    ----------
    result : JobResult
    job : str
        The job for the message: its id, and what the job was made from.
    """
    message = with_stderr(f"{job}: {describe(result)}", result.stderr)
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


def with_stderr(message: str, stderr: str) -> str:
    """Append the last lines of a standard error, if there are any, to a message."""
    if not stderr:
        return message
    return f"{message}\n{STDERR_HEADING}\n" + textwrap.indent(stderr.rstrip("\n"), "    ")


def canceled(reason: str) -> JobResult:
    """Return the result of a job that was canceled before the instance accepted it."""
    return JobResult(JobStatus.CANCELED, exception=EndCause.CANCELED.value, note=reason, started=False)


def refused(reason: str) -> JobResult:
    """Return the result of a job that the instance did not accept."""
    return JobResult(JobStatus.FAILED, exception=EndCause.REFUSED.value, note=reason, started=False)


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL, or "signal 40" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _with_note(what: str, note: str) -> str:
    return f"{what}: {note}" if note else what
