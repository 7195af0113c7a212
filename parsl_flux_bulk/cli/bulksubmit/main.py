"""The `bulksubmit` command: parse the arguments, open the instance, run all jobs, return the exit status.

A thin layer over :class:`parsl_flux_bulk.bulk.submitter.BulkSubmitter`. ``arguments.py`` parses the
command line, ``work.py`` has the jobs to submit, ``run.py`` runs them, ``report.py`` prints.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from parsl_flux_bulk.bulk.inputs import InputError
from parsl_flux_bulk.bulk.submitter import BulkSubmitter
from parsl_flux_bulk.cli.bulksubmit.arguments import asks_for_little, parse
from parsl_flux_bulk.cli.bulksubmit.dry_run import dry_run
from parsl_flux_bulk.cli.bulksubmit.earlier_run import EarlierRun
from parsl_flux_bulk.cli.bulksubmit.failures import Retries
from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.job_output import JobOutput, LostOutputHint, Watch
from parsl_flux_bulk.cli.bulksubmit.packing import packs_by_default
from parsl_flux_bulk.cli.bulksubmit.report import Report
from parsl_flux_bulk.cli.bulksubmit.run import Run
from parsl_flux_bulk.cli.bulksubmit.streams import Output, Records, open_standard_streams
from parsl_flux_bulk.cli.bulksubmit.work import Work, refuse_invalid
from parsl_flux_bulk.errors import InstanceError, TraceError
from parsl_flux_bulk.instances.factory import choose_instance

if TYPE_CHECKING:
    from parsl_flux_bulk.cli.bulksubmit.job_trace import JobTrace

EXIT_OK, EXIT_FAILED, EXIT_UNUSABLE = 0, 1, 2

MANY_JOBS = 10_000
"""Number of jobs that a stream is taken for, whose end is not known."""


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
    except (UnusableInput, InputError, InstanceError) as error:
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
    if options.dry_run is not None:
        work.earlier = _earlier(options)
        return EXIT_OK if dry_run(work, options.dry_run, output, errors) else EXIT_FAILED
    with ExitStack() as stack:
        records = _open_records(options, work)
        if records is not None:
            stack.enter_context(contextlib.closing(records))
        work.earlier = _earlier(options)
        bulk, keeps_output = _open_submitter(options, work)
        stack.callback(bulk.close, timeout=1.0)
        bulk.launch()
        work.read_ahead()
        bulk.start()
        report = Report(None if work.earlier else work.total, records, output, errors)
        report.say("Starting...")
        job_output = JobOutput() if keeps_output or options.output_dir else LostOutputHint(report)
        if options.watch:
            job_output = stack.enter_context(contextlib.closing(Watch(bulk, report)))
        retries = Retries(options.retries, options.retry_on or Retries.on) if options.retries else None
        trace = _open_trace(options, work)
        if trace is not None:
            stack.callback(trace.close)
            trace.started(bulk.description)
        run = Run(bulk, report, job_output, retries, options.max_fails, trace)
        with run.signals():
            run.submit(work)
            run.drain()
        if run.stopped:
            run.say_stopped()
        else:
            report.finish()
        _write_report(trace, options.report, report)
        if work.earlier is not None:
            _say_skipped(work.earlier, report)
        if run.signal is not None:
            return 128 + run.signal
        if keeps_output and options.packed is None and report.ran_short_jobs:
            report.warn("hint: such short jobs run many times as fast with --packed")
        return EXIT_OK if report.ok else EXIT_FAILED


def _open_records(options: argparse.Namespace, work: Work) -> Records | None:
    name = options.json
    if work.output_directory is not None:
        work.output_directory.make()
        name = name or work.output_directory.records
    again = options.resume or options.rerun
    if options.rerun:
        EarlierRun(options.rerun, only_failed=True)  # refuses a missing file before it is made
    return Records(again or name, append=bool(again)) if again or name else None


def _open_trace(options: argparse.Namespace, work: Work) -> JobTrace | None:
    if options.trace is None and options.report is None:
        return None
    # Slow to import.
    from parsl_flux_bulk.cli.bulksubmit.job_trace import JobTrace
    from parsl_flux_bulk.cli.report.main import NEEDS
    from parsl_flux_bulk.trace.format import SUFFIX

    if options.report is not None and importlib.util.find_spec("bokeh") is None:
        raise UnusableInput(f"--report: {NEEDS}")
    name = options.trace or f"{os.path.splitext(options.report)[0]}{SUFFIX}"
    try:
        return JobTrace(name, work.total)
    except OSError as error:
        raise UnusableInput(f"cannot write {name!r} (--trace): {error.strerror}") from error


def _write_report(trace: JobTrace | None, name: str | None, report: Report) -> None:
    if trace is None:
        return
    trace.close()
    if name is None:
        return
    from parsl_flux_bulk.cli.report.main import write

    try:
        write(trace.path, name)
    except (TraceError, OSError) as error:
        report.warn(f"no report (--report): {error}; the trace is {trace.path!r}")
    else:
        report.say(f"Report: {name}")


def _earlier(options: argparse.Namespace) -> EarlierRun | None:
    name = options.resume or options.rerun
    return EarlierRun(name, only_failed=bool(options.rerun)) if name else None


def _say_skipped(earlier: EarlierRun, report: Report) -> None:
    report.say(f"Skipped {earlier.skipped} jobs of the earlier run")
    if earlier.foreign:
        report.warn("none of these jobs is in the records: they are of another command")


def _open_submitter(options: argparse.Namespace, work: Work) -> tuple[BulkSubmitter, bool]:
    """Return the submitter, and whether its instance keeps the output of jobs after the run."""
    try:
        instance = choose_instance("local" if options.local else options.uri)
    except ValueError as error:
        raise UnusableInput(str(error)) from error
    packed = options.packed
    if packed is None:
        jobs = MANY_JOBS if work.total is None else work.total
        packed = packs_by_default(instance, jobs) and asks_for_little(options)
    try:
        bulk = BulkSubmitter(
            instance,
            max_active_jobs=options.max_active,
            packed=work.packing(keeps_output=options.watch) if packed else False,
            keep_ended=False,
            record_times=options.trace is not None or options.report is not None,
        )
    except ValueError as error:
        raise UnusableInput(str(error)) from error
    # Only a Flux instance that was there before is not owned.
    attached = not getattr(instance, "owned", True)
    return bulk, attached and not packed


def _check_current_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UnusableInput(
            f"the current directory cannot be used: {error.strerror}; change to another one"
        ) from error


def run() -> NoReturn:
    """Run the command, and end the process with its exit status."""
    status = main()
    gc.freeze()  # or else the interpreter looks for garbage twice before it ends
    sys.exit(status)


if __name__ == "__main__":
    run()
