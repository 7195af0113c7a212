"""The progress bar: updated continuously on a terminal, a plain line elsewhere."""

from __future__ import annotations

import time
from typing import TextIO, TypeAlias

from parsl_flux_bulk.jobspec.duration import format_duration

WIDTH = 58
"""Width of the bar (characters), unless the terminal is narrower."""

TERMINAL_INTERVAL = 0.1
PLAIN_INTERVAL = 60.0
"""Seconds between two updates of the bar, on a terminal and elsewhere."""


_State: TypeAlias = tuple[int, int, float, bool]
"""The arguments of `Progress.update`."""


class Progress:
    """Shows how many jobs have ended, here as a plain line. Belongs to one thread."""

    interval = PLAIN_INTERVAL

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._latest: _State | None = None
        self._shown: _State | None = None
        self._next = time.monotonic() + self.interval

    def update(self, done: int, total: int, seconds: float, *, known: bool = False) -> None:
        """Show that `done` of `total` jobs have ended within `seconds`.

        Parameters
        ----------
        known : bool
            Whether `total` is that of the run, so that the time left can be estimated.
        """
        self._latest = done, total, seconds, known
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.interval
            self._show()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """Print the last state of the bar."""
        if self._latest != self._shown:
            self._show()

    def _columns(self) -> int:
        return 2 * WIDTH  # a file has no narrow lines

    def _text(self, state: _State) -> str:
        done, total, seconds, known = state
        room = self._columns() - len(bar(done, total, seconds, width=0, left=known)) - 1
        width = max(1, min(WIDTH, room))
        return bar(done, total, seconds, width=width, encoding=self._stream.encoding, left=known)

    def _show(self) -> None:
        self._shown = self._latest
        if self._latest is not None:
            self.line(self._text(self._latest))


class _LiveProgress(Progress):
    interval = TERMINAL_INTERVAL

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream)
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def finish(self) -> None:
        if self._latest is not None:
            self._show()
            self._live.stop()
            self._latest = None

    def _columns(self) -> int:
        return self._console.width

    def _show(self) -> None:
        from rich.text import Text

        if self._latest is not None:
            self._live.start()
            self._live.update(Text(self._text(self._latest), no_wrap=True), refresh=True)


def open_progress(stream: TextIO) -> Progress:
    """Return the progress bar for a stream."""
    return _LiveProgress(stream) if stream.isatty() else Progress(stream)


def bar(
    done: int,
    total: int,
    seconds: float,
    *,
    width: int = WIDTH,
    encoding: str | None = None,
    left: bool = False,
) -> str:
    """Return the bar as text, such as ``|█████-----| 50.0% (29.4 job/s)``; with `left`, and the time left."""
    fraction = done / total if total else 1.0
    full = "█"
    try:
        full.encode(encoding or "utf-8")  # a stream without an encoding takes any text
    except (UnicodeEncodeError, LookupError):
        full = "#"
    filled = int(fraction * width)
    rate = done / seconds if seconds > 0 else 0.0
    # Rounded down: 100.0% means that all have ended.
    percent = int(fraction * 1000) / 10
    more = f", {format_duration((total - done) / rate)} left" if left and done < total and rate else ""
    return f"|{full * filled}{'-' * (width - filled)}| {percent:.1f}% ({rate:.1f} job/s{more})"
