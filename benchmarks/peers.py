"""Compare FluxBulkExecutor with other executors in one table.

    python benchmarks/peers.py [--runs N] [--rows NAME ...] [--quick] [--json FILE]

Each measurement runs in a separate process, and those with Flux each in a fresh instance on this machine.
The executors of a row alternate (A B C, A B C, …), so that other load on the machine affects all of them.
Printed are medians, and the ratio of FluxBulkExecutor to each other executor beside its target.
``benchmarks/measures.py`` defines the measures, ``benchmarks/executors.py`` the executors.

Needs Flux, and ``pip install pandas executorlib ray joblib`` for the rows with these. Rows of what is missing
are left out, with the reason. The exit status is 1 if a target was missed or a measurement failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors import (
    ATTACH,
    ATTACHED,
    EMBEDDED_POOL,
    EXECUTORLIB,
    HTEX,
    JOBS,
    LOKY,
    NEED_FLUX,
    OWN,
    PACKAGES,
    PARSL_FLUX,
    POOL,
    PROCESSES,
    RAY,
    THREADS,
)
from flux_instance import flux_instance, flux_missing

HERE = Path(__file__).resolve().parent


@dataclass
class Series:
    """A line of a row: one measure of one executor.

    `variant` distinguishes two lines of the same executor.
    """

    executor: str
    arguments: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    fake_cores: int = 0
    values: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def key(self) -> str:
        return f"{self.executor}{', ' if self.variant else ''}{self.variant}"

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None


@dataclass(frozen=True)
class Target:
    """A limit for the median of a series: a factor of another series, or a figure.

    With `difference`, the limit is for the difference to the other series.
    """

    key: str
    limit: float
    peer: str = ""
    at_least: bool = True
    difference: bool = False


@dataclass
class Row:
    """A measure, the executors to measure, and the targets."""

    name: str
    title: str
    measure: str
    series: list[Series]
    targets: list[Target]
    limit: float = 120.0
    """Seconds that one measurement may take."""


def rows(quick: bool) -> list[Row]:
    """Return all rows, with a tenth of the tasks if `quick`."""
    fewer = 10 if quick else 1
    seconds = {"seconds": 3.0 if quick else 15.0}
    few, many = {"tasks": 10}, {"tasks": 2000 // fewer}
    big = {"tasks": 200 // fewer}
    alone = {"tasks": 20_000 // fewer}
    small, large = {"tasks": 10_000 // fewer}, {"tasks": 100_000 // fewer}
    return [
        Row(
            "perf",
            "parsl-perf, no-op tasks/s",
            "perf",
            [Series(name, seconds) for name in (ATTACHED, HTEX, THREADS, PARSL_FLUX)],
            [
                Target(ATTACHED, 1.2, HTEX),
                Target(ATTACHED, 0.9, THREADS),
                Target(ATTACHED, 200, PARSL_FLUX),
            ],
            limit=240.0,
        ),
        Row(
            "jobs",
            "parsl-perf, no-op tasks/s, each a Flux job",
            "perf",
            [Series(JOBS, seconds), Series(PARSL_FLUX, seconds)],
            [Target(JOBS, 4, PARSL_FLUX)],
            limit=240.0,
        ),
        Row(
            "chain",
            "chain of 200 dependent apps, ms a link",
            "chain",
            [
                *(Series(name, {"links": 200}) for name in (ATTACHED, HTEX, THREADS)),
                Series(PARSL_FLUX, {"links": 10}),
            ],
            [Target(ATTACHED, 0.6, HTEX, at_least=False)],
        ),
        Row(
            "first",
            "first result after parsl.load, s",
            "first",
            [Series(name) for name in (ATTACHED, OWN, HTEX, THREADS, PARSL_FLUX)],
            [
                Target(ATTACHED, 0.9, at_least=False),
                Target(OWN, 2.2, at_least=False),
                Target(ATTACHED, 0.4, HTEX, at_least=False),
                Target(OWN, 0.4, HTEX, at_least=False),
            ],
        ),
        Row(
            "bash",
            "bash apps (true)/s",
            "bash",
            [*(Series(name, many) for name in (ATTACHED, HTEX)), Series(PARSL_FLUX, few)],
            [Target(ATTACHED, 1.5, HTEX)],
        ),
        Row(
            "arguments",
            "1 MB arguments, tasks/s",
            "megabyte_arguments",
            [*(Series(name, big) for name in (ATTACHED, HTEX)), Series(PARSL_FLUX, few)],
            [Target(ATTACHED, 1.2, HTEX)],
        ),
        Row(
            "results",
            "1 MB results, tasks/s",
            "megabyte_results",
            [*(Series(name, big) for name in (ATTACHED, HTEX)), Series(PARSL_FLUX, few)],
            [Target(ATTACHED, 1.2, HTEX)],
        ),
        Row(
            "sleep",
            "time.sleep(0.1) on 2 workers, % of ideal",
            "sleeps",
            [Series(name, {"tasks": 200 // fewer, "seconds": 0.1}) for name in (ATTACHED, HTEX, THREADS)],
            [Target(ATTACHED, 95)],
        ),
        Row(
            "alone",
            "executor alone, no-op tasks/s",
            "executor_alone",
            [Series(name, alone) for name in (ATTACHED, PROCESSES, HTEX, EXECUTORLIB)],
            [Target(ATTACHED, 1.0, PROCESSES), Target(ATTACHED, 8, HTEX), Target(ATTACHED, 3, EXECUTORLIB)],
        ),
        Row(
            "large",
            "executor alone, no-op tasks/s of a large and a small batch",
            "executor_alone",
            [
                Series(ATTACHED, large, f"{large['tasks']} tasks"),
                Series(ATTACHED, small, f"{small['tasks']} tasks"),
            ],
            [Target(f"{ATTACHED}, {large['tasks']} tasks", 0.85, f"{ATTACHED}, {small['tasks']} tasks")],
        ),
        Row(
            "pool",
            "concurrent.futures: submit, no-op calls/s",
            "executor_alone",
            [Series(name, alone) for name in (POOL, PROCESSES, EXECUTORLIB, RAY)],
            [Target(POOL, 4, PROCESSES), Target(POOL, 3, EXECUTORLIB), Target(POOL, 15, RAY)],
        ),
        Row(
            "map",
            "concurrent.futures: map, no-op items/s",
            "mapped",
            [Series(name, {"items": 200_000 // fewer}) for name in (POOL, PROCESSES)],
            [Target(POOL, 1.0, PROCESSES)],
        ),
        Row(
            "trip",
            "concurrent.futures: one call at a time, ms",
            "round_trip",
            [Series(name, {"calls": 2000 // fewer}) for name in (POOL, EMBEDDED_POOL, PROCESSES)],
            [
                Target(POOL, 1.3, PROCESSES, at_least=False),
                Target(EMBEDDED_POOL, 0.9, PROCESSES, at_least=False),
            ],
        ),
        Row(
            "tail",
            "concurrent.futures: one call at a time, 99th percentile, ms",
            "round_trip",
            [
                Series(name, {"calls": 2000 // fewer, "percentile": 99})
                for name in (POOL, EMBEDDED_POOL, PROCESSES)
            ],
            [
                Target(POOL, 1.3, PROCESSES, at_least=False),
                Target(EMBEDDED_POOL, 0.9, PROCESSES, at_least=False),
            ],
        ),
        Row(
            "joblib",
            "joblib, calls of 1 ms/s",
            "batches",
            [Series(name, {"calls": 2000 // fewer, "seconds": 0.001}) for name in (POOL, LOKY)],
            [Target(POOL, 0.95, LOKY)],
        ),
        Row(
            "array",
            "joblib, 100 MB array as argument, calls/s",
            "array",
            [Series(name, {"calls": 20, "megabytes": 100}) for name in (POOL, LOKY)],
            [Target(POOL, 1.0, LOKY)],
        ),
        Row(
            "memory",
            "submit-side memory, bytes a pending task",
            "memory",
            [Series(ATTACHED, large), Series(THREADS, large)],
            [Target(ATTACHED, 2000, THREADS, at_least=False, difference=True)],
        ),
        Row(
            "node",
            "64 fake cores: CPU s until the workers are ready",
            "workers_ready",
            [
                Series(ATTACHED, {"workers": 64}, "64 workers", fake_cores=64),
                Series(ATTACHED, {"workers": 1}, "1 worker", fake_cores=64),
            ],
            [Target(f"{ATTACHED}, 64 workers", 3, f"{ATTACHED}, 1 worker", at_least=False)],
        ),
    ]


# -- measuring ---------------------------------------------------------------------------------------


def missing_for(series: Series) -> str:
    """Return why a series cannot be measured here, or "" if it can."""
    if series.executor in NEED_FLUX and (why := flux_missing()):
        return why
    package = PACKAGES.get(series.executor)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install {package}"
    return ""


def measure(row: Row, series: Series) -> None:
    """Make one measurement, and record its value or its failure."""
    instance: Any = contextlib.nullcontext("")
    if series.executor in ATTACH:
        instance = flux_instance(series.fake_cores)
    try:
        with instance as uri, tempfile.TemporaryDirectory(prefix="peers-") as directory:
            value = run_measure(row, series, uri, directory)
    except Exception as error:
        series.failure = f"{type(error).__name__}: {error}"
        return
    if isinstance(value, dict):
        series.notes.append(", ".join(f"{key} {value[key]:.3g}" for key in value if key != "cpu"))
        value = value["cpu"]
    series.values.append(value)


def run_measure(row: Row, series: Series, uri: str, directory: str) -> Any:
    """Run one measurement as a process, and return the value that it printed."""
    command = [sys.executable, str(HERE / "measures.py"), row.measure, series.executor]
    process = subprocess.Popen(
        [*command, json.dumps(series.arguments)],
        cwd=directory, env=environment(series, uri), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=row.limit)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no result within {row.limit:g} s") from None
    finally:
        # Its children, such as the interchange of HighThroughputExecutor, may outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        lines = err.strip().splitlines() or ["no output on stderr"]
        raise RuntimeError(f"exit status {process.returncode}: {lines[-1][:200]}")
    return json.loads(out.splitlines()[-1])


def environment(series: Series, uri: str) -> dict[str, str]:
    """Return the environment of a measurement."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("FLUX_")}
    # HighThroughputExecutor's worker and the Python of Parsl's FluxExecutor must be on PATH.
    given["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{given['PATH']}"
    given["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), given.get("PYTHONPATH", "")]))
    given["BENCHMARK_URI"] = uri
    if series.executor == EXECUTORLIB:
        given["FLUX_URI"] = uri
    return given


def measure_row(row: Row, runs: int) -> None:
    """Measure a row; the executors alternate."""
    for series in row.series:
        series.failure = missing_for(series)
    for run in range(runs):
        for series in row.series:
            if series.failure:
                continue
            began = time.monotonic()
            measure(row, series)
            result = series.failure or f"{series.values[-1]:.4g}"
            print(
                f"  {row.name}, run {run + 1}, {series.key}: {result} ({time.monotonic() - began:.0f} s)",
                file=sys.stderr,
                flush=True,
            )


# -- the table ---------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """A target, and whether it was met; None if a measurement failed."""

    text: str
    reached: float | None
    met: bool | None


def compare(row: Row, target: Target) -> Comparison:
    """Compare medians with a target."""
    by_key = {series.key: series.median for series in row.series}
    value = by_key[target.key]
    relation = "≥" if target.at_least else "≤"
    if not target.peer:
        text, reached = f"{relation} {target.limit:g}", value
    else:
        other = by_key[target.peer]
        known = value is not None and other is not None
        if target.difference:
            text = f"{relation} {target.limit:g} above"
            reached = value - other if known else None  # type: ignore[operator]
        else:
            text = f"{relation} {target.limit:g} ×"
            reached = value / other if known else None  # type: ignore[operator]
    if reached is None:
        return Comparison(text, None, None)
    return Comparison(text, reached, reached >= target.limit if target.at_least else reached <= target.limit)


def table(measured: list[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table: one for each executor of a row."""
    yield "| measure | executor | median | lowest … highest | FluxBulkExecutor : this | must reach | met |"
    yield "|---|---|---:|---|---:|---|---|"
    for row in measured:
        title = row.title
        for series in row.series:
            comparisons = [
                compare(row, target) for target in row.targets if series.key == (target.peer or target.key)
            ]
            if series.median is None:
                cells = ["", series.failure]
            else:
                spread = f"{min(series.values):.4g} … {max(series.values):.4g}"
                notes = f" ({'; '.join(series.notes[-1:])})" if series.notes else ""
                cells = [f"{series.median:.4g}", spread + notes]
            reached = ["" if c.reached is None else f"{c.reached:.3g}" for c in comparisons]
            met = ["?" if c.met is None else "yes" if c.met else "NO" for c in comparisons]
            cells += ["<br>".join(column) for column in (reached, [c.text for c in comparisons], met)]
            yield f"| {title} | {series.key} | {' | '.join(cells)} |"
            title = ""


def machine() -> str:
    """Return one line that describes this machine and the versions."""
    versions = []
    for package in ("parsl", "flux-python", "executorlib"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    cores = len(os.sched_getaffinity(0))
    return f"Python {platform.python_version()}, {', '.join(versions)}; {cores} cores; {platform.platform()}"


def main() -> int:
    """Measure, print, compare with the targets."""
    names = [row.name for row in rows(False)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measurements of each executor (default: 3)")
    parser.add_argument("--rows", nargs="+", choices=names, metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tasks; targets do not count")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="EXECUTOR", help="measure only these executors"
    )
    parser.add_argument("--json", metavar="FILE", help="write every value to FILE")
    options = parser.parse_args()
    measured = [row for row in rows(options.quick) if row.name in (options.rows or names)]
    if options.only:
        for row in measured:
            row.series = [s for s in row.series if any(name in s.key for name in options.only)]
            keys = {s.key for s in row.series}
            row.targets = [t for t in row.targets if t.key in keys and (not t.peer or t.peer in keys)]
    if why := flux_missing():
        print(f"FluxBulkExecutor is not measured, which needs Flux here: {why}", file=sys.stderr)
    for row in measured:
        measure_row(row, options.runs)
    print(f"\n{machine()}\nMedians of {options.runs} runs\n")
    print("\n".join(table(measured)))
    if options.json:
        record = {
            "machine": machine(),
            "runs": options.runs,
            "quick": options.quick,
            "rows": {
                row.name: {
                    s.key: {"values": s.values, "notes": s.notes, "failure": s.failure} for s in row.series
                }
                for row in measured
            },
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    comparisons = [compare(row, target) for row in measured for target in row.targets]
    missed = sum(c.met is not True for c in comparisons)
    print(f"\n{len(comparisons) - missed} of {len(comparisons)} targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
