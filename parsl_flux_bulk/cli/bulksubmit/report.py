"""The output of `bulksubmit`: its lines, the summary of failures, and one JSON record for each job."""

from __future__ import annotations

import textwrap
import time
from dataclasses import replace
from typing import Any, TextIO, cast

from parsl_flux_bulk.bulk.submitter import JobFuture
from parsl_flux_bulk.cli.bulksubmit.failures import STDERR_LINES, Failures
from parsl_flux_bulk.cli.bulksubmit.item import Item
from parsl_flux_bulk.cli.bulksubmit.packing import PACKED_FROM
from parsl_flux_bulk.cli.bulksubmit.progress import open_progress
from parsl_flux_bulk.cli.bulksubmit.streams import Output, Records, reason
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.base import EndCause, JobResult, JobStatus
from parsl_flux_bulk.pipeline.exit_status_to_error import describe
from parsl_flux_bulk.protocol.stderr_tail import last_lines

SHORT_JOBS_RATE = 5.0
"""Jobs/s above which jobs count as short: a Flux instance starts some 20 to 40 a second."""


class Report:
    """Counts how jobs ended, and prints it while they run and at the end.

    Parameters
    ----------
    total : int or None
        Number of jobs to run; None if it is not known yet.
    records : Records or None
        File for the JSON records.
    output : Output
        For the lines and the bar.
    errors : Output
        For the failures.
    """

    def __init__(self, total: int | None, records: Records | None, output: Output, errors: Output) -> None:
        self._output = output
        self._errors = errors
        self._progress = open_progress(cast("TextIO", output))
        self._records = records
        self._records_failed = False
        self._total = total
        self.read = 0
        self._began = time.time()
        self._failures = Failures()
        self._first = ""
        self._submitting = True
        self._settled = 0
        self.submitted = 0
        self.retried = 0
        self.ended = 0
        self.canceled = 0
        self.canceled_running = 0
        self.failed_to_read = False

    @property
    def failed(self) -> int:
        """Number of jobs that failed."""
        return self._failures.count

    @property
    def ok(self) -> bool:
        """Whether every job completed, and everything about them could be written."""
        outputs = (self._output, self._errors, self._records)
        return (
            not self.failed
            and not self.failed_to_read
            and all(output is None or output.error is None for output in outputs)
        )

    def say(self, text: str) -> None:
        """Print one line."""
        self._progress.line(f"bulksubmit: {text}")

    def warn(self, text: str) -> None:
        """Print one line to standard error."""
        self._print_error(f"bulksubmit: {text}")

    def job_output(self, label: str, text: str, *, error: bool) -> None:
        """Print what a job printed, on a terminal with the job's label before each line."""
        stream = self._errors if error else self._output
        lines = text.removesuffix("\n").split("\n")
        if stream.isatty():
            lines = [f"{printable(label)}: {line}" for line in lines]
        if error:
            self._print_error("\n".join(lines))
        else:
            self._progress.line("\n".join(lines))

    def all_submitted(self) -> None:
        """Print how many jobs were enqueued, and how fast."""
        if self._total is None:
            self._total = self.read
        seconds = self._seconds()
        self.say(f"submitted {self.submitted} jobs in {seconds:.2f}s. {self.submitted / seconds:.2f}job/s")
        self._submitting = False
        if self._first:
            self.say(self._first)

    def unreadable(self, error: Exception) -> None:
        """Print that no more jobs can be read."""
        self.failed_to_read = True
        self.warn(f"{error}; the jobs read so far run on" if self.read else str(error))

    def invalid(self, item: Item, error: Exception) -> None:
        """Record a file that is not a valid jobspec, or cannot be read."""
        what = "not a valid jobspec" if isinstance(error, JobspecError) else "cannot be read"
        note = f"{what}: {reason(error)}"
        self._settled += 1
        self._failed(item.label, note)
        self._record(item, status="invalid", exception="jobspec", note=note)

    def not_submitted(self, item: Item, error: Exception) -> None:
        """Record a job that could not be submitted, because the instance is lost."""
        self._settled += 1
        self._failed(item.label, f"not submitted: {error}")
        self._record(item, status="not-submitted", exception=EndCause.INSTANCE_LOST.value, note=str(error))

    def job_ended(
        self, item: Item, future: JobFuture, result: JobResult, *, interrupted: bool = False
    ) -> None:
        """Record how a job ended, and update the bar.

        Parameters
        ----------
        interrupted : bool
            Whether the run had been ended, and its jobs canceled: these are neither failures nor progress.
        """
        self.ended += 1
        self._settled += 1
        if self.ended == 1:
            self._first = f"First job finished in about {(future.t_end or time.time()) - self._began:.3f}s"
            if self._total is None or not self._submitting:
                self.say(self._first)
                self._first = ""
        if interrupted and result.cause in (EndCause.CANCELED, EndCause.EXECUTION):
            # Flux says of a job that was canceled as it started that its start failed.
            result = replace(result, status=JobStatus.CANCELED)
            self.canceled += 1
            self.canceled_running += result.started
        elif not result.ok:
            job = f" (job {future.job_name})" if future.job_name else ""
            self._failed(f"{future.label}{job}", describe(result), result.stderr)
        self._record(
            item,
            id=future.job_name or None,
            node=future.node or None,
            submitted=future.t_submit,
            finished=future.t_end,
            status=result.status.value,
            exit_code=result.exit_code,
            signal=result.signal,
            exception=result.exception or None,
            note=result.note,
        )
        known = not self._submitting or self._total is not None
        total = self._total if self._submitting and self._total is not None else self.submitted
        self._progress.update(self.ended - self.canceled, total, self._seconds(), known=known)

    def not_ended(self, item: Item, job: str, status: str) -> None:
        """Record a job whose end is not waited for."""
        self._record(item, id=job or None, status=status)

    def finish(self) -> None:
        """Print the totals and the failures."""
        seconds = self._seconds()
        ran = self.ended - self.canceled
        if 0 < ran < self.submitted:  # stopped: the bar must not promise an end
            self._progress.update(ran, self.submitted, seconds)
        self._progress.finish()
        summary = f"Ran {ran} jobs in {seconds:.1f}s. {ran / seconds:.1f} job/s"
        self.say(summary)
        if self.retried:
            self.say(f"Retried {self.retried} times")
        if self._output.error is not None:
            self.warn(f"cannot write to standard output: {reason(self._output.error)}")
            self.warn(summary)
        if not self.failed:
            return
        total = self.read if self._total is None else self._total
        self._print_error(f"bulksubmit: {self.failed} of {total} jobs failed:")
        self._print_error("\n".join(self._failures.lines()))

    @property
    def ran_short_jobs(self) -> bool:
        """Whether the jobs were many, and so short that starting them may have taken most of the time."""
        return self.ended >= PACKED_FROM and self.ended / self._seconds() > SHORT_JOBS_RATE

    def _failed(self, job: str, why: str, stderr: str = "") -> None:
        self._failures.add(printable(job), why, stderr)
        # The last job's failure is in the summary that follows at once.
        if self.failed == 1 and (self._total is None or self._settled < self._total):
            self.warn(f"first failure: {printable(job)}: {why}")
            if tail := last_lines(stderr, STDERR_LINES):
                self._print_error(textwrap.indent(tail, "      | ", lambda line: True))

    def _print_error(self, text: str) -> None:
        if self._errors.isatty() and self._output.isatty():
            self._progress.line(text)  # above the bar
        else:
            print(text, file=self._errors, flush=True)

    def _record(self, item: Item, **fields: Any) -> None:
        records = self._records
        if records is None:
            return
        records.write(
            dict.fromkeys(_FIELDS) | {"file": item.label, "key": item.key, "retries": item.retries} | fields
        )
        if records.error is not None and not self._records_failed:
            self._records_failed = True
            self.warn(
                f"cannot write {records.name!r} (--json): {reason(records.error)}; "
                "the jobs run on, without records from here on"
            )

    def _seconds(self) -> float:
        return max(time.time() - self._began, 1e-6)


def printable(text: str) -> str:
    """Escape newlines, control characters and undecodable bytes, so that a name stays on its line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_FIELDS = (
    "file", "key", "id", "node", "submitted", "finished", "status", "exit_code", "signal", "exception",
    "note", "retries",
)  # fmt: skip
