"""The `bulksubmit` command: run all jobs, handle signals, return the exit status.

A thin layer over :class:`parsl_flux_bulk.bulk.submitter.BulkSubmitter`. ``arguments.py`` parses the
command line, ``work.py`` has the jobs to submit, ``report.py`` prints.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture
from parsl_flux_bulk.cli.arguments import asks_for_little, parse
from parsl_flux_bulk.cli.inputs import UnusableInput
from parsl_flux_bulk.cli.report import SHOWN_FAILURES, Report, printable
from parsl_flux_bulk.cli.signal_queue import SignalQueue
from parsl_flux_bulk.cli.streams import Output, Records, open_standard_streams
from parsl_flux_bulk.cli.work import Item, Work, refuse_invalid
from parsl_flux_bulk.errors import InstanceError, InstanceLost, JobspecError
from parsl_flux_bulk.instances.factory import choose_instance
from parsl_flux_bulk.instances.federation.inner_instances import automatic

EXIT_OK, EXIT_FAILED, EXIT_UNUSABLE = 0, 1, 2

HELD_JOBS = 10_000
"""Bound on the jobs that are in memory: more files are read as jobs end."""

CANCEL_TIMEOUT = 10.0
"""Seconds that jobs get to end after a signal."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    output, errors = open_standard_streams()
    options = parse(list(sys.argv[1:] if arguments is None else arguments))
    logging.basicConfig(
        stream=errors,
        format="bulksubmit: %(message)s",
        level=logging.INFO if options.verbose else logging.WARNING,
    )
    try:
        return _run(options, output, errors)
    except (UnusableInput, InstanceError) as error:
        print(f"bulksubmit: {error}", file=errors, flush=True)
        return EXIT_UNUSABLE
    except BrokenPipeError:
        print(
            "bulksubmit: nobody reads standard output any more: canceled the outstanding jobs",
            file=errors,
            flush=True,
        )
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # before the signal handlers are set, or after they are reset
        return 128 + signal.SIGINT


def _run(options: argparse.Namespace, output: Output, errors: Output) -> int:
    _check_current_directory()
    work = Work(options)
    if work.repeated:
        print(f"bulksubmit: {work.repeated} file(s) given more than once run once", file=errors)
    if options.strict:
        refuse_invalid(work.files)
    with ExitStack() as stack:
        records = stack.enter_context(contextlib.closing(Records(options.json))) if options.json else None
        bulk = _open_submitter(options, len(work))
        stack.callback(bulk.close, timeout=1.0)
        bulk.start()
        report = Report(len(work), records, output, errors)
        report.say("Starting...")
        run = Run(bulk, report)
        with run.signals():
            run.submit(work)
            run.drain()
        if run.signal is None:
            report.finish()
            return EXIT_OK if report.ok else EXIT_FAILED
        run.say_interrupted(run.signal)
        return 128 + run.signal


def _open_submitter(options: argparse.Namespace, jobs: int) -> BulkSubmitter:
    try:
        instance = choose_instance("local" if options.local else options.uri)
    except ValueError as error:
        raise UnusableInput(str(error)) from error
    instances = options.instances
    if instances is None:
        most = options.max_active or automatic(instance, jobs)
        instances = max(1, min(most, automatic(instance, jobs))) if asks_for_little(options) else 1
    try:
        return BulkSubmitter(
            instance, max_active_jobs=options.max_active, instances=instances, keep_ended=False
        )
    except ValueError as error:
        raise UnusableInput(str(error)) from error


def _check_current_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UnusableInput(
            f"the current directory cannot be used: {error.strerror}; change to another one"
        ) from error


class Run:
    """One run: submits all jobs, reports their ends, and stops at a signal.

    The signal handler only sets :attr:`signal`; the signal also wakes the queue of ended jobs.

    Attributes
    ----------
    signal : int or None
        The first signal that arrived.
    """

    def __init__(self, bulk: BulkSubmitter, report: Report) -> None:
        self._bulk = bulk
        self._report = report
        self._ended: SignalQueue[JobFuture] = SignalQueue()
        self._outstanding: set[JobFuture] = set()
        self._not_submitted = 0
        self.signal: int | None = None

    def submit(self, work: Work) -> None:
        """Submit every job; stop at a signal."""
        items = iter(work)
        for item in items:
            while len(self._outstanding) >= HELD_JOBS and self.signal is None:
                self._take(None)
            if self.signal is not None:
                self._skip(item, *items)
                return
            try:
                future = item.submit(self._bulk)
            except (JobspecError, OSError) as error:
                self._report.invalid(item.label, error)
                continue
            except InstanceLost as error:
                self._report.not_submitted(item.label, error)
                continue
            self._report.submitted += 1
            self._watch(future)
        self._report.all_submitted()

    def drain(self) -> None:
        """Wait until every job has ended; after a signal, for a bounded time."""
        deadline: float | None = None
        while self._outstanding:
            if self.signal is not None and deadline is None:
                name = signal.Signals(self.signal).name
                outstanding = len(self._outstanding)
                # Before the message, in whose answer a second signal may come.
                self._bulk.cancel(f"bulksubmit was ended by {name}")
                self._report.say(f"{name}: canceling {outstanding} jobs (again to stop at once)")
                deadline = time.monotonic() + CANCEL_TIMEOUT
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._take(left)

    def say_interrupted(self, number: int) -> None:
        """Print how many jobs were canceled, and those that have not ended."""
        report = self._report
        report.finish()
        names = sorted(future.job_name or printable(future.label) for future in self._outstanding)
        lines = [
            f"{signal.Signals(number).name}: canceled {report.canceled} outstanding jobs, "
            f"of which {report.canceled_running} had started"
        ]
        if self._not_submitted:
            lines.append(f"{self._not_submitted} jobs were not submitted yet")
        if names:
            shown = " ".join(names[:SHOWN_FAILURES]) + (" ..." if len(names) > SHOWN_FAILURES else "")
            lines.append(f"{len(names)} jobs did not end within {CANCEL_TIMEOUT:g} s: {shown}")
        for line in lines:
            report.warn(line)
        for future in self._outstanding:
            report.not_ended(future.label, future.job_name, "unknown")

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

    def _watch(self, future: JobFuture) -> None:
        self._outstanding.add(future)
        future.add_done_callback(self._ended.put)  # not a closure over the future: a cycle stays in memory

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            _die(number)
        self.signal = number

    def _take(self, timeout: float | None) -> None:
        """Wait until one more job ends, a signal arrives, or the timeout is over."""
        future = self._ended.get(timeout)
        if future is not None and future.job_result is not None:
            self._outstanding.discard(future)
            self._report.job_ended(future, future.job_result, interrupted=self.signal is not None)

    def _skip(self, *items: Item) -> None:
        self._not_submitted = len(items)
        for item in items:
            self._report.not_ended(item.label, "", "not-submitted")


def _die(number: int) -> NoReturn:
    # No flush and no join: a thread, a lock or the terminal may hang.
    show_cursor = b"\x1b[?25h" if os.isatty(1) else b""
    with contextlib.suppress(OSError):
        os.write(2, show_cursor + b"\nbulksubmit: stopped at once; its jobs are being canceled\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
