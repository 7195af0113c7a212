"""`flux-bulk top`: watch a run in a terminal."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from parsl_flux_bulk.errors import TraceError
from parsl_flux_bulk.trace.reader import Trace, find
from parsl_flux_bulk.trace.writer import request

EXIT_OK, EXIT_UNUSABLE = 0, 2

ANSWER_TIMEOUT = 3.0
"""Seconds that a run may take to name its tasks; it does so once a second."""

NEEDS = "the live view needs Textual: pip install textual"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "place", metavar="RUNDIR|FILE", help="a run directory (its latest trace), or a trace file"
    )
    parser.add_argument(
        "--once", action="store_true", help="print the summary and the tasks once, as text, and exit"
    )


def run(options: argparse.Namespace) -> int:
    """Show the run until the user quits; return 2 if there is none."""
    from parsl_flux_bulk.cli.top.summary import TASK_COLUMNS, Summary

    try:
        trace = Trace(find(options.place)[-1])
        trace.update()
        if options.once:
            _ask_for_tasks(trace)
            shown = Summary(trace)
            print("\n".join([*shown.lines(), *_table(TASK_COLUMNS, shown.tasks())]))
            return EXIT_OK
        try:
            from parsl_flux_bulk.cli.top.app import Top
        except ImportError as error:
            raise TraceError(f"{NEEDS} ({error}); or give --once") from error
        Top(trace).run()
    except (TraceError, OSError) as error:
        print(f"flux-bulk top: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    return EXIT_OK


def _ask_for_tasks(trace: Trace) -> None:
    """Have the run name its tasks, unless it has ended or is on another host."""
    seen, deadline = len(trace.statuses), time.monotonic() + ANSWER_TIMEOUT
    try:
        request(trace.path, "watch")
    except OSError:
        return
    while len(trace.statuses) == seen and not trace.finished and time.monotonic() < deadline:
        time.sleep(0.05)
        trace.update()


def _table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return lines of aligned columns; none without rows."""
    if not rows:
        return []
    cells = [list(columns), *([str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
