"""Results and output that the embedded instance keeps of jobs that ended. Runs in the server."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict, deque
from typing import Any, TypeAlias

from parsl_flux_bulk.instances.local.stdio_files import spool_paths

KEPT_RESULTS = 10_000
"""Reported results kept for another `watch`; all unreported ones are kept."""

KEPT_OUTPUT_JOBS = 100_000
KEPT_OUTPUT_BYTES = 1 << 30
"""Output is kept of so many jobs, those that ended last, and so many bytes."""

Result: TypeAlias = dict[str, Any] | None
"""Fields of a JobResult; None for exit status 0."""


class KeptResults:
    """The results of jobs that ended, by job id."""

    def __init__(self) -> None:
        self._unreported: dict[int, Result] = {}
        self._reported: OrderedDict[int, Result] = OrderedDict()

    def __contains__(self, job_id: int) -> bool:
        return job_id in self._unreported or job_id in self._reported

    def add(self, job_id: int, result: Result) -> None:
        """Keep a result until `take`, and among the last `KEPT_RESULTS` after that."""
        self._unreported[job_id] = result

    def take(self, job_id: int) -> Result:
        """Return a result, to be reported now."""
        if job_id in self._reported:
            return self._reported[job_id]
        result = self._reported[job_id] = self._unreported.pop(job_id)
        if len(self._reported) > KEPT_RESULTS:
            self._reported.popitem(last=False)
        return result


class KeptOutput:
    """The files in the spool of jobs that ended."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._jobs: deque[tuple[int, int]] = deque()  # job, bytes
        self._bytes = 0
        self._dropped: set[int] = set()

    def missing(self, job_id: int) -> str:
        """Return why the output of a job is not there; "" if it was not dropped."""
        if job_id not in self._dropped:
            return ""
        return (
            f"the embedded instance has dropped the output of job {job_id}: it keeps that of the last "
            f"{KEPT_OUTPUT_JOBS} jobs, {KEPT_OUTPUT_BYTES >> 20} MiB at most. Name a file for the output"
        )

    def add(self, job_id: int) -> None:
        """Keep the output of a job that has ended; drop the oldest output beyond the bounds."""
        size = 0
        for path in spool_paths(self._directory, job_id):
            try:
                length = os.stat(path).st_size
            except OSError:
                continue
            if not length:
                _unlink(path)
            size += length
        if size:
            self._jobs.append((job_id, size))
            self._bytes += size
        # The newest is kept, whatever its size: its owner is about to read it.
        while len(self._jobs) > KEPT_OUTPUT_JOBS or (self._bytes > KEPT_OUTPUT_BYTES and len(self._jobs) > 1):
            oldest, length = self._jobs.popleft()
            self._bytes -= length
            self._dropped.add(oldest)
            for path in spool_paths(self._directory, oldest):
                _unlink(path)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
