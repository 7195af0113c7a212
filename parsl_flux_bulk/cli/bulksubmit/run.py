"""One run of `bulksubmit`: submit all jobs, wait for their ends, stop at a signal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from parsl_flux_bulk.bulk.inputs import InputError
from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture
from parsl_flux_bulk.cli.bulksubmit.failures import Retries
from parsl_flux_bulk.cli.bulksubmit.item import Item
from parsl_flux_bulk.cli.bulksubmit.job_output import JobOutput
from parsl_flux_bulk.cli.bulksubmit.report import Report, printable
from parsl_flux_bulk.cli.bulksubmit.signal_queue import SignalQueue
from parsl_flux_bulk.cli.bulksubmit.work import Work
from parsl_flux_bulk.errors import InstanceLost, JobspecError

if TYPE_CHECKING:  # slow to import
    from parsl_flux_bulk.cli.bulksubmit.job_trace import JobTrace

HELD_JOBS = 10_000
"""Bound on the jobs that are in memory: more are read as jobs end."""

CANCEL_TIMEOUT = 10.0
"""Seconds that jobs get to end after a signal."""

SHOWN_NAMES = 20
"""Names of jobs that did not end in time, at most."""

RECORD_INTERVAL = 0.5
"""Seconds between two looks at ended jobs, while more are submitted."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(Exception):
    """A signal arrived while jobs were read from a stream."""


class Run:
    """One run: submits all jobs, reports their ends, and stops at a signal.

    The signal handler only sets :attr:`signal`; the signal also wakes the queue of ended jobs.

    Attributes
    ----------
    signal : int or None
        The first signal that arrived.
    """

    def __init__(
        self,
        bulk: BulkSubmitter,
        report: Report,
        output: JobOutput,
        retries: Retries | None = None,
        max_fails: int | None = None,
        trace: JobTrace | None = None,
    ) -> None:
        self._bulk = bulk
        self._retries = retries or Retries()
        self._max_fails = max_fails
        self._trace = trace
        self._recorded = time.monotonic()
        self._output = output
        self._report = report
        self._ended: SignalQueue[JobFuture] = SignalQueue()
        self._outstanding: dict[JobFuture, Item] = {}
        self._not_submitted = 0
        self.signal: int | None = None

    @property
    def stopped(self) -> str:
        """What stopped the run before its end; "" if nothing did."""
        if self.signal is not None:
            return signal.Signals(self.signal).name
        if self._max_fails is not None and self._report.failed >= self._max_fails:
            return f"--max-fails {self._max_fails}"
        return ""

    def submit(self, work: Work) -> None:
        """Submit every job; stop at a signal, and after too many failures."""
        items = work.items(self._wait_readable)
        try:
            for item in items:
                while len(self._outstanding) >= HELD_JOBS and not self.stopped:
                    self._take(None)
                if self.stopped:
                    # The rest of a stream may be long in coming.
                    self._skip(item, *(items if work.total is not None else ()))
                    return
                self._submit(item)
                if time.monotonic() - self._recorded > RECORD_INTERVAL:
                    while self._ended:
                        self._take(0)
        except InputError as error:
            self._report.unreadable(error)
        except _Stopped:
            return
        self._report.all_submitted()

    def _submit(self, item: Item) -> None:
        if not item.retries:
            self._report.read += 1
        try:
            request = item.request()
            future = self._bulk.submit(request.jobspec, urgency=request.urgency, label=item.label)
        except (JobspecError, OSError) as error:
            self._report.invalid(item, error)
            return
        except InstanceLost as error:
            self._report.not_submitted(item, error)
            return
        if item.retries:
            self._report.retried += 1
        else:
            self._report.submitted += 1
        self._outstanding[future] = item
        if self._trace is not None:
            self._trace.submitted(item, request, future)
        future.add_done_callback(self._ended.put)  # not a closure over the future: a cycle stays in memory

    def drain(self) -> None:
        """Wait until every job has ended; if the run is stopped, for a bounded time."""
        deadline: float | None = None
        while self._outstanding:
            if deadline is None and (name := self.stopped):
                outstanding = len(self._outstanding)
                # Before the message, in whose answer a second signal may come.
                self._bulk.cancel(f"bulksubmit was ended by {name}")
                again = " (again to stop at once)" if self.signal is not None else ""
                self._report.say(f"{name}: canceling {outstanding} jobs{again}")
                deadline = time.monotonic() + CANCEL_TIMEOUT
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._take(left)

    def say_stopped(self) -> None:
        """Print how many jobs were canceled, and those that have not ended."""
        report = self._report
        report.finish()
        names = sorted(future.job_name or printable(future.label) for future in self._outstanding)
        lines = [
            f"{self.stopped}: canceled {report.canceled} outstanding jobs, "
            f"of which {report.canceled_running} had started"
        ]
        if self._not_submitted:
            lines.append(f"{self._not_submitted} jobs were not submitted yet")
        if names:
            shown = " ".join(names[:SHOWN_NAMES]) + (" ..." if len(names) > SHOWN_NAMES else "")
            lines.append(f"{len(names)} jobs did not end within {CANCEL_TIMEOUT:g} s: {shown}")
        for line in lines:
            report.warn(line)
        for future, item in self._outstanding.items():
            report.not_ended(item, future.job_name, "unknown")

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within the block, the first signal sets :attr:`signal`; the second ends the process at once."""
        before = {
            number: signal.signal(number, self._on_signal)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # as under nohup
        }
        try:
            with self._ended.woken_by_signals():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            _die(number)
        self.signal = number

    def _take(self, timeout: float | None) -> None:
        """Wait until one more job ends, a signal arrives, or the timeout is over."""
        if not self._ended:
            self._recorded = time.monotonic()
        future = self._ended.get(self._timeout(timeout))
        if self._trace is not None:
            self._trace.count()
        self._output.look(self._outstanding)
        if future is not None and future.job_result is not None:
            item = self._outstanding.pop(future)
            self._output.ended(future)
            result = future.job_result
            if self._trace is not None:
                self._trace.ended(future, result)
            if not self.stopped and self._retries.applies(result, item.retries):
                self._submit(dataclasses.replace(item, retries=item.retries + 1))
            else:
                self._report.job_ended(item, future, result, interrupted=bool(self.stopped))

    def _timeout(self, timeout: float | None) -> float | None:
        timeout = self._output.timeout(timeout)
        if self._trace is None:
            return timeout
        return self._trace.period if timeout is None else min(timeout, self._trace.period)

    def _wait_readable(self, descriptor: int) -> None:
        """Report ended jobs until there is more to read."""
        while not self.stopped:
            if self._ended.wait_readable(descriptor, self._timeout(None)):
                return
            self._take(0)
        raise _Stopped

    def _skip(self, *items: Item) -> None:
        self._not_submitted = len(items)
        for item in items:
            self._report.not_ended(item, "", "not-submitted")


def _die(number: int) -> NoReturn:
    # No flush and no join: a thread, a lock or the terminal may hang.
    show_cursor = b"\x1b[?25h" if os.isatty(1) else b""
    with contextlib.suppress(OSError):
        os.write(2, show_cursor + b"\nbulksubmit: stopped at once; its jobs are being canceled\n")
    os._exit(128 + number)
