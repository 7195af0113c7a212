"""`flux-bulk top`: watch a run in a terminal."""

from __future__ import annotations

import argparse
import sys

from parsl_flux_bulk.errors import TraceError
from parsl_flux_bulk.trace.reader import Trace, find

EXIT_OK, EXIT_UNUSABLE = 0, 2

NEEDS = "the live view needs Textual: pip install textual"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "place", metavar="RUNDIR|FILE", help="a run directory (its latest trace), or a trace file"
    )
    parser.add_argument("--once", action="store_true", help="print the summary once, as text, and exit")


def run(options: argparse.Namespace) -> int:
    """Show the run until the user quits; return 2 if there is none."""
    from parsl_flux_bulk.cli.top.summary import Summary

    try:
        trace = Trace(find(options.place)[-1])
        trace.update()
        if options.once:
            shown = Summary(trace)
            lines = [shown.title(), shown.progress(), shown.counts(), shown.cores(), *shown.shapes()]
            print("\n".join([*lines, *filter(None, [shown.blocks()])]))
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
