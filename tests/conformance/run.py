"""Run Parsl's own test suite, which is part of its wheel, on FluxBulkExecutor.

    python tests/conformance/run.py [--compare] [CONFIGURATION ...] [-- ARGUMENTS OF PYTEST]

For each configuration of this directory, run the suite as Parsl runs it on its executors, then Parsl's
``test_flux.py``. The exit status is 1 if a test failed or too few ran. ``--compare`` also runs the suite on
Parsl's HighThroughputExecutor, and prints the ratio of the times.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import parsl

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers import flux_missing  # noqa: E402

CONFIGURATIONS = ("embedded", "flux_workers", "flux_jobs")
PARSL_TESTS = Path(parsl.__file__).parent / "tests"
SELECTION = "not cleannet and not unix_filesystem_permissions_required"
AT_LEAST = 140
"""Minimum number of passed tests: Parsl 2026.10.26 has 143 for an executor of this kind."""

RUN_LIMIT = 900.0
"""Seconds that one run may take."""


@dataclass
class Result:
    """The result of one run of pytest."""

    passed: int
    failed: int
    skipped: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped in {self.seconds:.1f} s"


def run_pytest(name: str, what: str, directory: Path, arguments: list[str]) -> Result:
    """Run pytest on tests of Parsl; its output goes to the terminal."""
    print(f"\n==== {name}: {what}", flush=True)
    report = directory / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "adapt", f"--junitxml={report}"]
    command += ["-c", str(HERE / "parsl_suite.ini"), f"--rootdir={PARSL_TESTS.parent.parent}", *arguments]
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    # HighThroughputExecutor's worker must be on PATH.
    commands = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": commands,
        "PYTHONPATH": os.pathsep.join(path),
        "CONFORMANCE_CONFIGURATION": str(HERE / f"{name}.py"),
    }
    try:
        subprocess.run(command, cwd=directory, env=environment, timeout=RUN_LIMIT)
    except subprocess.TimeoutExpired:
        print(f"not ended after {RUN_LIMIT} s")
    if not report.exists():
        return Result(0, 1, 0, 0.0)
    suite = next(iter(ElementTree.parse(report).iter("testsuite")))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - failed - skipped
    return Result(passed, failed, skipped, float(suite.get("time", 0)))


def run_suite(name: str, extra: list[str]) -> Result:
    """Run the suite on one configuration."""
    with tempfile.TemporaryDirectory(prefix=f"conformance-{name}-") as directory:
        config = ["--config", str(HERE / f"{name}.py")]
        return run_pytest(
            name, "Parsl's suite", Path(directory), [str(PARSL_TESTS), *config, "-k", SELECTION, *extra]
        )


def run_flux_tests(name: str) -> Result:
    """Run Parsl's tests of its FluxExecutor on one configuration."""
    with tempfile.TemporaryDirectory(prefix=f"conformance-{name}-") as directory:
        arguments = [str(PARSL_TESTS / "test_flux.py"), "--config", "local"]
        return run_pytest(name, "Parsl's test_flux.py", Path(directory), arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run Parsl's own test suite on FluxBulkExecutor.")
    parser.add_argument("configurations", nargs="*", metavar="CONFIGURATION", help=", ".join(CONFIGURATIONS))
    parser.add_argument("--compare", action="store_true", help="also run on HighThroughputExecutor")
    own, _, extra = _split(sys.argv[1:])
    options = parser.parse_args(own)
    unknown = set(options.configurations) - set(CONFIGURATIONS)
    if unknown:
        parser.error(
            f"unknown configuration: {', '.join(unknown)}; the configurations are {', '.join(CONFIGURATIONS)}"
        )
    missing = flux_missing()
    lines: list[str] = []
    good = True
    peer: Result | None = None
    if options.compare:
        peer = run_suite("htex", extra)
        lines.append(f"{'HighThroughputExecutor':24} {peer}")
    for name in options.configurations or CONFIGURATIONS:
        if missing and name.startswith("flux"):
            lines.append(f"{name:24} SKIPPED: {missing}")
            continue
        result = run_suite(name, extra)
        ratio = f" ({result.seconds / peer.seconds:.2f} × HighThroughputExecutor)" if peer else ""
        lines.append(f"{name:24} {result}{ratio}")
        good = good and not result.failed and (bool(extra) or result.passed >= AT_LEAST)
        flux_tests = run_flux_tests(name)
        lines.append(f"{name + ', test_flux.py':24} {flux_tests}")
        good = good and not flux_tests.failed
    print("\n==== conformance: Parsl", parsl.__version__)
    print("\n".join(lines))
    print("conformance:", "good" if good else "FAILED")
    return 0 if good else 1


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Split arguments at ``--``."""
    if "--" not in arguments:
        return arguments, "", []
    at = arguments.index("--")
    return arguments[:at], "--", arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(main())
