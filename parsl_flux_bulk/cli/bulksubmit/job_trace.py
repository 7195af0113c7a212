"""The trace of a run of `bulksubmit`: each job is a task of the trace."""

from __future__ import annotations

import math
import os
import time
from itertools import islice
from typing import Any

from parsl_flux_bulk.bulk.submitter import JobFuture
from parsl_flux_bulk.cli.bulksubmit.item import Item
from parsl_flux_bulk.instances.base import EndCause, JobRequest, JobResult, JobStatus
from parsl_flux_bulk.pipeline.exit_status_to_error import describe
from parsl_flux_bulk.protocol.stderr_tail import last_lines
from parsl_flux_bulk.trace.format import (
    CANCELED,
    COMPLETED,
    FAILED,
    FAILURES_LIMIT,
    HEAD,
    LOST,
    SHOWN_TASKS,
    TIMES,
    WATCH_TIME,
)
from parsl_flux_bulk.trace.writer import Writer, this_process

_LOST = (EndCause.BLOCK_LOST, EndCause.INSTANCE_LOST)


class JobTrace:
    """Writes the trace of a run; but for requests, used in one thread.

    Parameters
    ----------
    path : str
    total : int or None
        Number of jobs, if it is known.

    Attributes
    ----------
    period : float
        Seconds between two counts.

    Raises
    ------
    OSError
        The file cannot be made.
    """

    period = 1.0

    def __init__(self, path: str, total: int | None) -> None:
        self.path = path
        self._closed = False
        self._writer = Writer(path, self._take_request)
        self._total = total
        self._apps: dict[str, int] = {}
        self._outstanding: dict[JobFuture, tuple[int, float, int, int, int, str]] = {}
        self._submitted = self._done = self._failed = self._canceled = self._failures = 0
        self._due = 0.0
        self._watched_until = 0.0

    def started(self, description: str) -> None:
        """Write where jobs run."""
        about = {"kind": "bulksubmit", "label": "bulksubmit", **this_process()}
        self._writer.event("run", {**about, "instance": description, "total": self._total})

    def submitted(self, item: Item, request: JobRequest, future: JobFuture) -> None:
        """Note a job that was handed to the instance."""
        self._submitted += 1
        # The jobs of a command are one row of a table, and so are all jobspec files.
        name = "jobspec files" if item.label == item.key else os.path.basename(item.label.split(" ", 1)[0])
        app = self._apps.get(name)
        if app is None:
            app = self._apps[name] = len(self._apps) + 1
            self._writer.event("app", {"index": app, "name": name})
        need = request.jobspec.demand
        self._outstanding[future] = self._submitted, time.time(), app, need.cores, need.gpus, name

    def ended(self, future: JobFuture, result: JobResult) -> None:
        """Write how a job ended."""
        number, handed_in, app, cores, gpus, name = self._outstanding.pop(future)
        code = _code(result)
        self._done += code == COMPLETED
        self._canceled += code == CANCELED
        self._failed += code in (FAILED, LOST)
        self._writer.event(
            "job",
            {
                "job": number,
                "id": future.job_name,
                "node": future.node,
                "kind": "job",
                "name": future.label,
                "state": "ended",
                "cores": cores,
                "gpus": gpus,
                "submitted": future.t_submit,
                "started": result.t_start,
                "ended": future.t_end,
                "status": result.status.value,
                "note": describe(result),
            },
        )
        assigned, resolved = _known(future.t_submit), _known(future.t_end)
        head = HEAD.pack(number, app, 0, number, code, handed_in, assigned, resolved)
        self._writer.tasks([head + TIMES.pack(_known(result.t_start), _known(result.t_end))])
        if code in (FAILED, LOST):
            self._describe(number, name, future, result)

    def _describe(self, number: int, name: str, future: JobFuture, result: JobResult) -> None:
        self._failures += 1
        if self._failures <= FAILURES_LIMIT:
            why, stderr = describe(result), last_lines(result.stderr)
            fields = {"task": number, "app": name, "type": "", "error": f"{future.label}: {why}", "notes": []}
            self._writer.event("failure", {**fields, "stderr": stderr, "host": "", "job": number})

    def count(self) -> None:
        """Write counts, unless the last ones are recent."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self.period
        self._write_counts(now)

    def _write_counts(self, now: float) -> None:
        waiting = sum(future.job_id is None for future in list(self._outstanding))
        self._writer.event(
            "status",
            {
                "pending": waiting,
                "running": len(self._outstanding) - waiting,
                "done": self._done,
                "failed": self._failed,
                "canceled": self._canceled,
                "worker_jobs": 0,
                "task_jobs": len(self._outstanding) - waiting,
                "waiting_jobs": waiting,
                "held": waiting,
                "held_reason": "as many jobs as are allowed are in the instance" if waiting else "",
                "shapes": [],
                "tasks": self._jobs_now() if now < self._watched_until else [],
            },
        )

    def _jobs_now(self) -> list[list[Any]]:
        now = time.time()
        return [
            [number, future.label, _where(future), "submitted" if future.job_id is not None else "waiting",
             round(now - handed_in, 1)]
            for future, (number, handed_in, *_) in islice(self._outstanding.items(), SHOWN_TASKS)
        ]  # fmt: skip

    def close(self) -> None:
        """Write the last counts, and close; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._write_counts(time.monotonic())
        self._writer.event("end", {})
        self._writer.close()

    def _take_request(self, words: list[str]) -> None:
        if words == ["watch"]:
            self._watched_until = time.monotonic() + WATCH_TIME
            return
        verb, number = words[0], int(words[1])
        for future, (other, *_) in self._outstanding.copy().items():
            if other == number and verb == "cancel":
                future.cancel()
            elif other == number and verb == "story":
                where = f"job {future.job_name} was submitted" if future.job_name else "waits to be submitted"
                self._writer.event("story", {"task": number, "lines": [f"{future.label}: {where}"]})


def _where(future: JobFuture) -> str:
    return f"{future.job_name} on {future.node}" if future.node else future.job_name


def _known(when: float | None) -> float:
    return math.nan if when is None else when


def _code(result: JobResult) -> int:
    if result.ok:
        return COMPLETED
    if result.status is JobStatus.CANCELED:
        return CANCELED
    return LOST if result.cause in _LOST else FAILED
