"""A queue that a signal wakes for certain.

A `queue.SimpleQueue` is not one: a signal that comes just before its `get` begins to wait sets a
flag, which nobody looks at until something else ends the wait. Here the wait is for a pipe, into
which the interpreter writes when a signal comes (``signal.set_wakeup_fd``).
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class SignalQueue(Generic[T]):
    """A queue for the main thread; a context manager, within which signals wake it."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._open = True

    def put(self, item: T) -> None:
        """Add an item; any thread, and a signal handler, may."""
        self._items.append(item)
        if self._open:
            try:
                os.write(self._writer, b"\0")
            except BlockingIOError:  # full, so awake
                pass

    def get(self, timeout: float | None = None) -> T | None:
        """Wait for an item, at most `timeout` seconds; None if there is none, or a signal came."""
        if not self._items:
            select.select([self._reader], [], [], timeout)
            try:
                os.read(self._reader, 1 << 16)
            except BlockingIOError:
                pass
        return self._items.popleft() if self._items else None

    def __enter__(self) -> SignalQueue[T]:
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._before)
        # The pipe stays open for threads that are about to write; it is closed with the process.
        self._open = False
