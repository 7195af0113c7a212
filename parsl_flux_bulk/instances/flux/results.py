"""Read what Flux recorded about an ended job: result, exec eventlog, output eventlog."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parsl_flux_bulk.errors import OutputUnavailable
from parsl_flux_bulk.instances.base import JobResult, JobStatus
from parsl_flux_bulk.instances.flux.shell_options import explain
from parsl_flux_bulk.protocol.stderr_tail import TAIL_LINES, last_lines

_LOG_FATAL, _LOG_ERROR = 2, 3
"""Levels up to this one are errors, after a fatal one of which the shell ends; syslog(3)."""

SHELL_KILLED = "the job's flux-shell was killed, and what it had started may still run"

_STATUS = {"cancel": JobStatus.CANCELED, "timeout": JobStatus.TIMEOUT}
"""How a job ended that a fatal exception of this type ended."""


def read_result(events: Sequence[Mapping[str, Any]], note: str) -> JobResult:
    """Convert the eventlog of an ended job (RFC 21), and the message of ``flux_job_wait(3)``.

    The first fatal exception counts: Flux may raise others while it ends the job. The wait status may be 0 in
    spite of one.

    Parameters
    ----------
    events : sequence of dict
        Empty if the instance does not have them any more.
    """
    started, status, fatal = not events, None, None
    for event in events:
        context = event.get("context", {})
        if event["name"] == "alloc":
            started = True
        elif event["name"] == "finish":
            status = context["status"]
        elif event["name"] == "exception" and context["severity"] == 0 and fatal is None:
            fatal = context
    exit_code, signal = _exit_of(status, note)
    exception = ""
    if fatal is not None:
        exception = fatal["type"]
        # Without a note, the message is "Fatal exception type=cancel ", which repeats the type.
        note = fatal.get("note", "") or ("" if note.startswith("Fatal exception") else note)
    elif os.WIFSIGNALED(status or 0):
        # A shell whose task a signal killed exits with 128 + signal.
        exception, note = "exec", SHELL_KILLED
    explained = explain(note)
    if explained != note:  # nothing ran; the wait status is the shell's
        exit_code = signal = None
    if started and exit_code == 0 and not exception:
        ended = JobStatus.COMPLETED
    else:
        ended = _STATUS.get(exception, JobStatus.FAILED)
        exit_code = exit_code or None
    return JobResult(
        ended, exit_code=exit_code, signal=signal, exception=exception, note=explained, started=started
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
    """Join the data events of an RFC 24 output eventlog into standard output and error.

    Raises
    ------
    OutputUnavailable
        The shell dropped output beyond its limit.
    """
    streams: dict[str, list[str]] = {"stdout": [], "stderr": []}
    for line in log.splitlines():
        event = json.loads(line)
        context = event.get("context", {})
        if event.get("name") == "data":
            streams[context["stream"]].append(_data(context))
        elif event.get("name") == "log" and str(context.get("message", "")).endswith("bytes truncated"):
            raise OutputUnavailable(
                f"the job wrote more than the instance keeps ({context['message']}): name a file for its "
                "output, or raise the shell option output.limit"
            )
    return "".join(streams["stdout"]), "".join(streams["stderr"])


def read_end(log: bytes) -> tuple[str, str, bool]:
    """Read the end of an output eventlog: last lines of standard error, the shell's errors, any fatal one.

    Parameters
    ----------
    log : bytes
        May begin inside an event.
    """
    stderr: list[str] = []
    errors: list[str] = []
    fatal = False
    for line in reversed(log.splitlines()):
        if b'"log"' not in line and (b'"stderr"' not in line or len(stderr) >= TAIL_LINES):
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        context = event.get("context", {})
        if event["name"] == "data" and context["stream"] == "stderr":
            stderr.append(_data(context))
        elif event["name"] == "log" and context.get("level", 7) <= _LOG_ERROR:
            errors.append(explain(context.get("message", "")))
            fatal |= context["level"] <= _LOG_FATAL
    return explain(last_lines("".join(reversed(stderr)))), "; ".join(reversed(errors)), fatal


def with_log(result: JobResult, log: str, fatal: bool = False) -> JobResult:
    """Return a result whose note has the reason from the shell's log, if the shell failed.

    A shell that ends before the tasks start need not raise an exception: its log alone tells.
    """
    failed = result.exception == "exec" or (fatal and not result.exception)
    if not failed or not log or log in result.note:
        return result
    note = result.note if result.exception else ""
    known = tuple(filter(None, (note, "Going to /tmp")))
    messages = [m for m in log.split("; ") if not m.startswith("plugin ") and not any(k in m for k in known)]
    if not messages:
        return result
    text = "; ".join(messages)
    return replace(result, exception="exec", note=f"{note} ({text})" if note else text)


def _data(context: dict[str, Any]) -> str:
    data = context.get("data", "")
    if context.get("encoding") == "base64":
        data = base64.b64decode(data).decode(errors="replace")
    text: str = data * context.get("repeat", 1)
    return text
