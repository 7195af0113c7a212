"""A queue whose `get` a signal interrupts.

`queue.SimpleQueue` lacks this: a signal that arrives just before `get` begins to wait runs its
handler, and the wait then goes on. Here `get` waits for a pipe, to which the interpreter writes when
a signal arrives (``signal.set_wakeup_fd``).
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class SignalQueue(Generic[T]):
    """A queue whose items the main thread gets, while other threads put them."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        # Never closed: a thread may be about to write. The pipe ends with the process.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def put(self, item: T) -> None:
        """Add an item, from any thread."""
        self._items.append(item)
        with suppress(BlockingIOError):  # a full pipe wakes `get`, too
            os.write(self._writer, b"\0")

    def get(self, timeout: float | None = None) -> T | None:
        """Wait for an item; None after `timeout` seconds, or if a signal arrived."""
        if not self._items:
            select.select([self._reader], [], [], timeout)
            with suppress(BlockingIOError):
                os.read(self._reader, 1 << 16)
        return self._items.popleft() if self._items else None

    @contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Let signals interrupt `get` within the block."""
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
