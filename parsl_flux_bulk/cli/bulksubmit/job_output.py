"""What jobs print: shown as it comes (``--watch``), or the hint that it will be lost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture
from parsl_flux_bulk.cli.bulksubmit.report import Report, printable
from parsl_flux_bulk.errors import InstanceLost, OutputUnavailable
from parsl_flux_bulk.instances.base import START, Connection
from parsl_flux_bulk.instances.output_parts import readable

INTERVAL = 0.5
"""Seconds between two looks at the output of the running jobs, at least."""

SHARE = 0.2
"""Share of the time that looking at running jobs may take, so that many jobs are looked at more seldom."""

LOOK_PARTS = 8
"""Parts of the output of a running job that are read at a look, so that no job keeps the others waiting."""

LOOKED_AT = 3
"""Jobs whose output is looked at for the hint: those that end first."""


class JobOutput:
    """Looks at the output of no job."""

    def timeout(self, timeout: float | None) -> float | None:
        """Return the seconds to wait at most before `look`."""
        return timeout

    def look(self, running: Iterable[JobFuture]) -> None:
        """Look at the output of jobs that have not ended."""

    def ended(self, future: JobFuture) -> None:
        """Look at the output of a job that has ended."""


class LostOutputHint(JobOutput):
    """Prints one line if jobs print what the end of the instance will drop."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._left = LOOKED_AT

    def ended(self, future: JobFuture) -> None:
        result = future.job_result
        if not self._left or result is None or not result.ok:
            return
        self._left -= 1
        try:
            printed = future.output_part()
        except (InstanceLost, OutputUnavailable):
            return
        if printed:
            self._left = 0
            self._report.warn(
                "what the jobs print is lost when this run ends: --output-dir DIR keeps it, --watch shows it"
            )


class _Shown:
    """What was printed of one job's output."""

    def __init__(self) -> None:
        self.end = START
        self.begun: tuple[list[str], list[str]] = ([], [])  # lines of stdout and stderr, without their ends


class Watch(JobOutput):
    """Prints what jobs print, in whole lines."""

    def __init__(self, bulk: BulkSubmitter, report: Report) -> None:
        self._bulk = bulk
        self._report = report
        self._connection: Connection | None = None
        self._shown: dict[JobFuture, _Shown] = {}
        self._due = 0.0

    def timeout(self, timeout: float | None) -> float:
        left = max(0.0, self._due - time.monotonic())
        return left if timeout is None else min(left, timeout)

    def look(self, running: Iterable[JobFuture]) -> None:
        began = time.monotonic()
        if began < self._due:
            return
        for future in running:
            if future.job_id is not None:
                self._show(future)
        now = time.monotonic()
        self._due = now + max(INTERVAL, (now - began) / SHARE)

    def ended(self, future: JobFuture) -> None:
        self._show(future, last=True)
        self._shown.pop(future, None)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _show(self, future: JobFuture, *, last: bool = False) -> None:
        shown = self._shown.setdefault(future, _Shown())
        why = ""
        try:
            if self._connection is None:
                self._connection = self._bulk.connect()
            for _ in itertools.count() if last else range(LOOK_PARTS):
                part = future.output_part(shown.end, self._connection)
                if not part:
                    break
                shown.end = part.end
                for begun, text, error in zip(
                    shown.begun, (part.stdout, part.stderr), (False, True), strict=True
                ):
                    self._print(future, begun, text, error)
        except (InstanceLost, OutputUnavailable) as failure:
            why = str(failure)
        if last:
            for begun, error in zip(shown.begun, (False, True), strict=True):
                self._print(future, begun, "\n" if begun else "", error)
            if why:
                self._report.warn(f"no output of {printable(future.label)}: {why}")

    def _print(self, future: JobFuture, begun: list[str], text: str, error: bool) -> None:
        """Print the lines that end in a part of the output; keep the one that only begins."""
        end = text.rfind("\n") + 1
        if end:
            whole = readable("".join((*begun, text[:end])))
            begun.clear()
            self._report.job_output(future.label, whole, error=error)
        if text[end:]:
            begun.append(text[end:])
