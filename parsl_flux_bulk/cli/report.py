"""What `bulksubmit` says: its lines, the summary of failures, and one JSON record a job."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO

from parsl_flux_bulk.bulk.submitter import JobFuture
from parsl_flux_bulk.cli.progress import open_progress
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.pipeline.job_errors import describe

SHOWN_FAILURES = 20
STDERR_LINES = 5


@dataclass(frozen=True)
class Failure:
    """One line of the summary, and the last lines of the job's standard error."""

    label: str
    job: str
    why: str
    stderr: str = ""


class Report:
    """Counts how jobs ended, and says so while they do and at the end.

    Parameters
    ----------
    total : int
        Jobs there are to run.
    records : TextIO or None
        Where one JSON record a job is written, a line each.
    stream : TextIO
        For the lines and the bar; what went wrong goes to stderr.
    """

    def __init__(self, total: int, records: TextIO | None, stream: TextIO) -> None:
        self._progress = open_progress(stream)
        self._records = records
        self._total = total
        self._began = time.time()
        self._failures: list[Failure] = []
        self.submitted = 0
        self.ended = 0
        self.canceled = 0
        self.canceled_running = 0
        self.failed = 0

    def say(self, text: str) -> None:
        """Print one line."""
        self._progress.line(f"bulksubmit: {text}")

    def all_submitted(self) -> None:
        """Every job is handed over."""
        seconds = self._seconds()
        self.say(f"submitted {self.submitted} jobs in {seconds:.2f}s. {self.submitted / seconds:.2f}job/s")

    def invalid(self, label: str, error: Exception) -> None:
        """Note a file that is no valid jobspec, or cannot be read."""
        what = "not a valid jobspec" if isinstance(error, JobspecError) else "cannot be read"
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self._failed(Failure(label, "", f"{what}: {reason}"))
        self._record(label, status="invalid", exception="jobspec", note=f"{what}: {reason}")

    def job_ended(self, future: JobFuture, *, canceled_by_us: bool = False) -> None:
        """Note how a job ended, and move the bar."""
        result = future.job_result
        assert result is not None
        self.ended += 1
        if self.ended == 1:
            self.say(f"First job finished in about {(future.t_end or time.time()) - self._began:.3f}s")
        if canceled_by_us and result.status.value == "canceled":
            self.canceled += 1
            self.canceled_running += result.started
        elif not result.ok:
            self._failed(Failure(future.label, future.job_name, describe(result), result.stderr))
        self._record(
            future.label,
            id=future.job_name or None,
            submitted=future.t_submit,
            finished=future.t_end,
            status=result.status.value,
            exit_code=result.exit_code,
            signal=result.signal,
            exception=result.exception or None,
            note=result.note,
        )
        # What a signal cancelled is not progress.
        self._progress.update(self.ended - self.canceled, self.submitted, self._seconds())

    def not_ended(self, label: str, job: str, status: str) -> None:
        """Note a job of which nothing more will be heard."""
        self._record(label, id=job or None, status=status)

    def finish(self) -> None:
        """Say how it went, on the whole and job by job where it went wrong."""
        self._progress.finish()
        seconds = self._seconds()
        ran = self.ended - self.canceled
        self.say(f"Ran {ran} jobs in {seconds:.1f}s. {ran / seconds:.1f} job/s")
        if not self.failed:
            return
        lines = [f"bulksubmit: {self.failed} of {self._total} jobs failed:"]
        for failure in self._failures:
            job = f" (job {failure.job})" if failure.job else ""
            lines.append(f"  {failure.label}{job}: {failure.why}")
            lines += [f"      | {line}" for line in failure.stderr.splitlines()[-STDERR_LINES:]]
        if self.failed > len(self._failures):
            lines.append(f"  and {self.failed - len(self._failures)} more; --json FILE lists all")
        print("\n".join(lines), file=sys.stderr, flush=True)

    def _failed(self, failure: Failure) -> None:
        self.failed += 1
        if len(self._failures) < SHOWN_FAILURES:
            self._failures.append(failure)

    def _record(self, label: str, **fields: Any) -> None:
        if self._records is not None:
            known = dict.fromkeys(_FIELDS) | {"file": label} | fields
            print(json.dumps(known, ensure_ascii=False), file=self._records, flush=True)

    def _seconds(self) -> float:
        return max(time.time() - self._began, 1e-6)


_FIELDS = ("file", "id", "submitted", "finished", "status", "exit_code", "signal", "exception", "note")
