"""Show how far the tasks of an executor are, while a script or a notebook runs.

::

    with progress(executor):
        ...
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from parsl_flux_bulk.executor.runtime import StatusReport
from parsl_flux_bulk.jobspec.duration import format_duration

if TYPE_CHECKING:
    from rich.console import Console

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
    line_shown = _line(stream)
    before, meter, ended = _counts(executor), Meter(total), threading.Event()

    def show() -> None:
        line_shown.show(meter.line(_since(before, _counts(executor)), time.monotonic()))

    def run() -> None:
        meter.line(Counts(), time.monotonic())
        while not ended.wait(line_shown.interval):
            show()

    # In this context, because ipykernel finds the cell of an output there.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="flux-bulk-progress", daemon=True)
    line_shown.start()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        show()
        line_shown.stop()


class _PlainLines:
    """A line each time."""

    interval = PLAIN_INTERVAL

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def start(self) -> None:
        """Do nothing."""

    def show(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def stop(self) -> None:
        """Do nothing."""


class _TerminalLine:
    """One line of a terminal, which changes."""

    interval = TERMINAL_INTERVAL

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._live = Live(console=console, auto_refresh=False)
        self.start, self.stop = self._live.start, self._live.stop

    def show(self, line: str) -> None:
        from rich.text import Text

        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)


class _NotebookLine:
    """One output of a cell, which changes. Not by Rich, which needs ipywidgets for that."""

    interval = TERMINAL_INTERVAL

    def __init__(self) -> None:
        from IPython.display import DisplayHandle

        self._handle: Any = DisplayHandle()

    def start(self) -> None:
        self._handle.display({"text/plain": "0 tasks"}, raw=True)

    def show(self, line: str) -> None:
        self._handle.update({"text/plain": line}, raw=True)

    def stop(self) -> None:
        """Do nothing: the last line stays."""


def _line(stream: TextIO | None) -> _PlainLines | _TerminalLine | _NotebookLine:
    from rich.console import Console

    console = Console(file=stream or sys.stderr, highlight=False, force_jupyter=False if stream else None)
    if console.is_jupyter:
        return _NotebookLine()
    if console.is_terminal:
        return _TerminalLine(console)
    return _PlainLines(stream or sys.stderr)


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
