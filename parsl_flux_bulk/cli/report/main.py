"""`flux-bulk report`: write the page of a run."""

from __future__ import annotations

import argparse
import os
import sys

from parsl_flux_bulk.errors import TraceError
from parsl_flux_bulk.trace.reader import Trace, find

EXIT_OK, EXIT_UNUSABLE = 0, 2

NEEDS = "the report needs Bokeh: pip install bokeh"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("place", metavar="RUNDIR|FILE", help="a run directory, or a trace file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the page (default: beside each trace, with the suffix .html)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page of each trace; return 2 if there is none."""
    try:
        traces = find(options.place)
        if options.output and len(traces) > 1:
            raise TraceError(f"{options.place} has {len(traces)} traces: give one of them, or no --output")
        for path in traces:
            name = options.output or f"{os.path.splitext(path)[0]}.html"
            write(path, name)
            print(name)
    except (TraceError, OSError) as error:
        print(f"flux-bulk report: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    return EXIT_OK


def write(trace_file: str, name: str) -> None:
    """Write the page of a trace file.

    Raises
    ------
    TraceError
        The file is not a trace, or Bokeh is not installed.
    OSError
    """
    try:
        from parsl_flux_bulk.cli.report.page import page
    except ImportError as error:
        raise TraceError(f"{NEEDS} ({error})") from error
    trace = Trace(trace_file)
    trace.update()
    text = page(trace)
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
