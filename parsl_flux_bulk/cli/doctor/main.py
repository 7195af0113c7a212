"""`flux-bulk doctor`: make all checks and print what they found."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator

from parsl_flux_bulk.cli.doctor import machine, round_trips, software
from parsl_flux_bulk.cli.doctor.finding import Finding, Status, failed, skipped
from parsl_flux_bulk.version import __version__

EXIT_OK, EXIT_FAILED = 0, 1

_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="leave out the round trips, which take seconds")


def run(options: argparse.Namespace) -> int:
    """Check and print; return 1 if any check failed, else 0."""
    findings = checks(quick=options.quick)
    if options.json:
        done = list(findings)
        records = [
            {"check": f.check, "status": f.status.value, "found": f.found, "remedy": f.remedy} for f in done
        ]
        print(json.dumps({"version": __version__, "ok": _all_well(done), "checks": records}, indent=2))
    else:
        done = _print(findings)
    return EXIT_OK if _all_well(done) else EXIT_FAILED


def checks(*, quick: bool = False) -> Iterator[Finding]:
    """Make the checks one after the other, and yield what each found."""
    for check in (software.python, software.parsl, software.flux, software.bindings):
        yield from _make(check)
    yield from _make(machine.instance)
    for check in (software.mpi, software.launcher, machine.tmpdir, machine.open_files):
        yield from _make(check)
    for name, trip in (("worker round trip", round_trips.worker), ("block round trip", round_trips.block)):
        yield from [skipped(name, "--quick")] if quick else _make(trip)


def _make(check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    try:
        found = check()
    except Exception as error:  # a machine can be broken in ways that no check expects
        name = check.__name__.replace("_", " ")
        return [failed(name, f"the check raised {error!r}", "report this as an issue, with this line")]
    return found if isinstance(found, list) else [found]


def _all_well(findings: Iterable[Finding]) -> bool:
    return all(finding.status is not Status.FAILED for finding in findings)


def _print(findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as soon as it is made; return all."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    done: list[Finding] = []
    for finding in findings:
        done.append(finding)
        line = Text(f"{finding.status.value:8}", _STYLES[finding.status])
        line.append(f" {finding.check:18} {finding.found}", "default")
        console.print(line)
        if finding.remedy:
            console.print(Text(f"{'':27} -> {finding.remedy}", "cyan"))
        sys.stdout.flush()
    wrong = [finding.check for finding in done if finding.status is Status.FAILED]
    summary = f"not ready: {', '.join(wrong)} failed" if wrong else "ready"
    console.print(Text(f"\nThis machine is {summary}", _STYLES[Status.FAILED if wrong else Status.OK]))
    return done
