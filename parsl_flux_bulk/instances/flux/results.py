"""Read what Flux recorded about an ended job: result, exec eventlog, output eventlog."""

from __future__ import annotations

import json
import os
from typing import Any

from parsl_flux_bulk.instances.base import JobResult, JobStatus

_STATUS = {1: JobStatus.COMPLETED, 2: JobStatus.FAILED, 4: JobStatus.CANCELED, 8: JobStatus.TIMEOUT}


def read_result(record: dict[str, Any], note: str) -> JobResult:
    """Convert the record of ``flux_job_result_get(3)`` and the message of ``flux_job_wait(3)``."""
    status = _STATUS.get(record.get("result", 2), JobStatus.FAILED)
    exit_code, signal = _exit_of(record.get("waitstatus"), note)
    return JobResult(
        status,
        exit_code=exit_code,
        signal=signal,
        exception=record.get("exception_type", ""),
        note=record.get("exception_note", "") or note,
        started="t_run" in record or not record,
    )


def _exit_of(status: int | None, note: str) -> tuple[int | None, int | None]:
    """Tell an exit status from a signal.

    flux-shell reports a task that a signal killed as exit status 128 + signal; see `first_exit`.
    """
    if status is None:
        return None, None
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    if 128 < code <= 192 and "exit code" not in note:
        return None, code - 128
    return code, None


def first_exit(log: str) -> int | None:
    """Return the exit status of the first task that ended; None if a signal killed the task.

    Parameters
    ----------
    log : str
        The job's ``guest.exec.eventlog``, which distinguishes a signal from ``exit 137`` and from a shell
        whose command was killed.
    """
    for line in log.splitlines():
        event = json.loads(line)
        if event.get("name") == "shell.task-exit":
            context = event.get("context", {})
            return None if context.get("signaled", 1) else context.get("exitcode")
    return None


def read_output(log: str) -> tuple[str, str]:
    """Join the data events of an RFC 24 output eventlog into standard output and error."""
    import base64

    streams: dict[str, list[str]] = {"stdout": [], "stderr": []}
    for line in log.splitlines():
        event = json.loads(line)
        if event.get("name") != "data":
            continue
        context = event["context"]
        data = context.get("data", "")
        if context.get("encoding") == "base64":
            data = base64.b64decode(data).decode(errors="replace")
        streams[context["stream"]].append(data * context.get("repeat", 1))
    return "".join(streams["stdout"]), "".join(streams["stderr"])
