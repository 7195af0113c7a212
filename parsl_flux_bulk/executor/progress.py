"""Show how far the tasks of an executor are, while a script or a notebook runs.

::

    with progress(executor):
        ...
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from parsl_flux_bulk.executor.runtime import StatusReport
from parsl_flux_bulk.jobspec.duration import format_duration

TERMINAL_INTERVAL = 0.25
PLAIN_INTERVAL = 30.0
"""Seconds between two updates, on a terminal or in a notebook, and elsewhere."""

RATE_WINDOW = 10.0
"""Seconds over which the rate is measured."""


class Watchable(Protocol):
    """An executor: FluxBulkExecutor or FluxPoolExecutor."""

    def status_report(self) -> StatusReport | None:
        """Return counts; None until started."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Tasks since the progress began.

    Attributes
    ----------
    waiting, running, ended, failed : int
        `ended` includes failed and canceled ones.
    busy, workers : int
    """

    waiting: int = 0
    running: int = 0
    ended: int = 0
    failed: int = 0
    busy: int = 0
    workers: int = 0


class Meter:
    """Turns counts into a line of text; keeps no more of the past than the rate needs.

    Parameters
    ----------
    total : int or None
        Number of tasks that are expected. None: as many as have been submitted.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._seen: list[tuple[float, int]] = []

    def line(self, counts: Counts, now: float) -> str:
        """Return the line that shows the counts at a time (s)."""
        self._seen = [(t, n) for t, n in self._seen if now - t <= RATE_WINDOW] + [(now, counts.ended)]
        total = max(self._total or 0, counts.ended + counts.running + counts.waiting)
        since, before = self._seen[0]
        span = now - since
        rate = (counts.ended - before) / span if span > 0 else 0.0
        parts = [f"{counts.ended}/{total} tasks", f"{counts.running} running", f"{counts.waiting} waiting"]
        if counts.failed:
            parts.append(f"{counts.failed} failed")
        if counts.workers:
            parts.append(f"{counts.busy} of {counts.workers} workers busy")
        if span > 0:
            parts.append(f"{rate:.1f}/s")
        if rate > 0 and counts.ended < total:
            parts.append(f"{format_duration((total - counts.ended) / rate)} left")
        return ", ".join(parts)


@contextmanager
def progress(
    executor: Watchable, total: int | None = None, *, stream: TextIO | None = None
) -> Iterator[None]:
    """Show counts of an executor's tasks within a ``with`` block: a line that changes, or plain lines.

    On a terminal and in a notebook, one line is updated four times a second; elsewhere, such as in the log of
    a batch job, a line is printed every 30 s. A last line is printed at the end of the block.

    Parameters
    ----------
    executor : FluxBulkExecutor or FluxPoolExecutor
    total : int or None
        Number of tasks that are expected, for the time left. None: as many as have been submitted.
    stream : text file or None
        None means standard error.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=stream or sys.stderr, highlight=False)
    live = Live(console=console, auto_refresh=False) if console.is_terminal or console.is_jupyter else None
    before, meter, ended = _counts(executor), Meter(total), threading.Event()

    def show() -> None:
        line = meter.line(_since(before, _counts(executor)), time.monotonic())
        if live is not None:
            live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            print(line, file=stream or sys.stderr, flush=True)

    def run() -> None:
        meter.line(Counts(), time.monotonic())
        while not ended.wait(TERMINAL_INTERVAL if live is not None else PLAIN_INTERVAL):
            show()

    thread = threading.Thread(target=run, name="flux-bulk-progress", daemon=True)
    if live is not None:
        live.start()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        show()
        if live is not None:
            live.stop()


def _counts(executor: Watchable) -> Counts:
    report = executor.status_report()
    if report is None:
        return Counts()
    tasks = report.tasks
    return Counts(
        waiting=tasks.pending,
        running=tasks.running,
        ended=tasks.done + tasks.failed + tasks.canceled,
        failed=tasks.failed,
        busy=sum(tasks.busy_workers.values()),
        workers=sum(tasks.workers.values()),
    )


def _since(before: Counts, now: Counts) -> Counts:
    ended, failed = now.ended - before.ended, now.failed - before.failed
    if ended < 0:  # the executor was started anew, or shut down
        ended, failed = now.ended, now.failed
    return Counts(now.waiting, now.running, ended, failed, now.busy, now.workers)
