"""The `flux-bulk` command: its subcommands, each in a package of its own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from parsl_flux_bulk.version import __version__

COMMANDS = {
    "doctor": ("parsl_flux_bulk.cli.doctor.main", "check whether this machine is ready, and say what to do"),
    "report": ("parsl_flux_bulk.cli.report.main", "write a page about a run, to look at in a browser"),
    "top": ("parsl_flux_bulk.cli.top.main", "watch a run in a terminal: rate, queue, workers, failures"),
}
"""Subcommands: the module, which has `add_options` and `run`, and what the command does."""


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """Return the parser; the options are those of the chosen subcommand, or (by default) of all."""
    top = argparse.ArgumentParser(
        prog="flux-bulk", description="Tools around jobs and tasks of parsl-flux-bulk."
    )
    top.add_argument("--version", action="version", version=f"flux-bulk {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, does) in COMMANDS.items():
        sub = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        if not chosen or name == chosen:  # others may need libraries that are not installed
            importlib.import_module(module).add_options(sub)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if word in COMMANDS), "none")
    options = parser(chosen).parse_args(words)
    module = importlib.import_module(COMMANDS[options.command][0])
    try:
        return int(module.run(options))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
