"""The progress bar: alive on a terminal, a plain line elsewhere."""

from __future__ import annotations

import time
from typing import Protocol, TextIO

WIDTH = 58
"""Characters of the bar itself, where there is room."""

TERMINAL_INTERVAL = 0.1
PLAIN_INTERVAL = 60.0
"""Seconds between two states of the bar; a log file wants fewer of them than an eye."""


class Progress(Protocol):
    """Shows how many jobs have ended. Used by one thread."""

    def update(self, done: int, total: int, seconds: float) -> None:
        """So many of `total` jobs have ended within `seconds`."""

    def line(self, text: str) -> None:
        """Print a line; the bar, if there is one, stays below it."""

    def finish(self) -> None:
        """Leave the last state of the bar standing."""


def open_progress(stream: TextIO) -> Progress:
    """Return what suits the stream."""
    return _LiveProgress(stream) if stream.isatty() else _PlainProgress(stream)


def bar(done: int, total: int, seconds: float, *, width: int = WIDTH, encoding: str | None = None) -> str:
    """The bar as text, such as ``|█████-----| 50.0% (29.4 job/s)``."""
    fraction = done / total if total else 1.0
    full = "█"
    try:
        full.encode(encoding or "utf-8")  # a stream without an encoding takes any text
    except (UnicodeEncodeError, LookupError):
        full = "#"
    filled = int(fraction * width)
    rate = done / seconds if seconds > 0 else 0.0
    # Not rounded up: 100.0% is for when all have ended.
    percent = int(fraction * 1000) / 10
    return f"|{full * filled}{'-' * (width - filled)}| {percent:.1f}% ({rate:.1f} job/s)"


class _PlainProgress:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._latest = ""
        self._printed = ""
        self._next = time.monotonic() + PLAIN_INTERVAL

    def update(self, done: int, total: int, seconds: float) -> None:
        self._latest = bar(done, total, seconds, encoding=self._stream.encoding)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_INTERVAL
            self._print_bar()

    def line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        self._print_bar()

    def _print_bar(self) -> None:
        if self._latest != self._printed:
            self._printed = self._latest
            self.line(self._latest)


class _LiveProgress:
    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._stream = stream
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)
        self._latest = ""
        self._next = 0.0

    def update(self, done: int, total: int, seconds: float) -> None:
        suffix = len(bar(done, total, seconds, width=0))
        room = max(1, min(WIDTH, self._console.width - suffix - 1))
        self._latest = bar(done, total, seconds, width=room, encoding=self._stream.encoding)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + TERMINAL_INTERVAL
            self._show()

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def finish(self) -> None:
        if self._latest:
            self._show()
            self._live.stop()
            self._latest = ""

    def _show(self) -> None:
        from rich.text import Text

        self._live.start()
        self._live.update(Text(self._latest, no_wrap=True), refresh=True)
