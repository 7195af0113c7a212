"""Results and output that the embedded instance keeps of jobs that ended. Runs in the server."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from parsl_flux_bulk.instances.full_disk import is_full, may_be_cut, no_space

KEPT_RESULTS = 10_000
"""Reported results kept for another `watch`; all unreported ones are kept."""

KEPT_OUTPUT_JOBS = 100_000
KEPT_OUTPUT_BYTES = 1 << 30
"""Output is kept of so many jobs, those that ended last, and so many bytes."""

Result: TypeAlias = tuple[dict[str, Any] | None, float | None, float | None]
"""Fields of a JobResult (None for exit status 0), and when the job started and ended."""


def spool_paths(directory: str, job_id: int) -> tuple[str, str]:
    """Return the paths where the instance keeps the output and error of a job."""
    return f"{directory}/spool/{job_id}.out", f"{directory}/spool/{job_id}.err"


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


class SpoolFiles(NamedTuple):
    """The open files to which the output and error of a job go that names none."""

    job_id: int
    paths: tuple[str, str]
    descriptors: tuple[int, int]

    def sizes(self) -> tuple[int, int]:
        """Return their sizes in bytes."""
        out, err = self.descriptors
        return os.fstat(out).st_size, os.fstat(err).st_size

    def cut_off(self, sizes: Sequence[int]) -> str:
        """Return why one of them may lack output; "" if none does."""
        for path, size in zip(self.paths, sizes, strict=True):
            if may_be_cut(size):
                # Both are in one directory.
                return no_space(path) if is_full(self.descriptors[0]) else ""
        return ""


class Spool:
    """Opens these files, and keeps those of jobs that ended. Empty ones serve again, under another name."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._empty: list[SpoolFiles] = []
        self._jobs: deque[tuple[int, int]] = deque()  # job, bytes
        self._bytes = 0
        self._dropped: set[int] = set()
        os.mkdir(f"{directory}/spool", 0o700)

    def open(self, job_id: int) -> SpoolFiles:
        """Open the files of a job."""
        paths = spool_paths(self._directory, job_id)
        while self._empty:
            old = self._empty.pop()
            try:
                for before, after, descriptor in zip(old.paths, paths, old.descriptors, strict=True):
                    os.rename(before, after)
                    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # the last job may have changed that
            except OSError:  # it has removed the file
                self._close(old)
            else:
                return SpoolFiles(job_id, paths, old.descriptors)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return SpoolFiles(job_id, paths, (os.open(paths[0], flags, 0o666), os.open(paths[1], flags, 0o666)))

    @property
    def jobs(self) -> int:
        """Number of ended jobs whose output is kept."""
        return len(self._jobs)

    def missing(self, job_id: int) -> str:
        """Return why the output of a job is not there; "" if it was not dropped."""
        if job_id not in self._dropped:
            return ""
        return (
            f"the embedded instance has dropped the output of job {job_id}: it keeps that of the last "
            f"{KEPT_OUTPUT_JOBS} jobs, {KEPT_OUTPUT_BYTES >> 20} MiB at most. Name a file for the output"
        )

    def keep(self, files: SpoolFiles, sizes: Sequence[int], *, reuse: bool) -> None:
        """Keep the output of a job that has ended; drop the oldest output beyond the bounds.

        Parameters
        ----------
        sizes : sequence of int
            Those of the files, in bytes.
        reuse : bool
            Whether no process of the job is left that could write.
        """
        if not any(sizes) and reuse:
            self._empty.append(files)
            return
        self._close(files)
        for path, size in zip(files.paths, sizes, strict=True):
            if not size:
                _unlink(path)
        if any(sizes):
            self._jobs.append((files.job_id, sum(sizes)))
            self._bytes += sum(sizes)
        # The newest is kept, whatever its size: its owner is about to read it.
        while len(self._jobs) > KEPT_OUTPUT_JOBS or (self._bytes > KEPT_OUTPUT_BYTES and len(self._jobs) > 1):
            oldest, length = self._jobs.popleft()
            self._bytes -= length
            self._dropped.add(oldest)
            for path in spool_paths(self._directory, oldest):
                _unlink(path)

    def _close(self, files: SpoolFiles) -> None:
        for descriptor in files.descriptors:
            os.close(descriptor)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
