"""A queue whose `get` a signal interrupts.

`queue.SimpleQueue` lacks this: a signal that arrives just before `get` begins to wait runs its
handler, and the wait then goes on. Here `get` waits for a pipe, to which the interpreter writes when
a signal arrives (``signal.set_wakeup_fd``).
"""

from __future__ import annotations

import select
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from parsl_flux_bulk.protocol.wakeup import Wakeup

T = TypeVar("T")


class SignalQueue(Generic[T]):
    """A queue whose items the main thread gets, while other threads put them."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._wakeup = Wakeup()
        self._waiting = False

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, item: T) -> None:
        """Add an item, from any thread."""
        self._items.append(item)
        if self._waiting:  # wake-ups coalesce: only the first costs a system call
            self._waiting = False
            self._wakeup.wake()

    def get(self, timeout: float | None = None) -> T | None:
        """Wait for an item; None after `timeout` seconds, or if a signal arrived."""
        if not self._items:
            self._select([self._wakeup.fileno()], timeout)
        return self._items.popleft() if self._items else None

    def wait_readable(self, descriptor: int, timeout: float | None = None) -> bool:
        """Wait until a file is readable, which is returned; or there is an item, a signal, or a timeout."""
        if self._items:
            return False
        return descriptor in self._select([self._wakeup.fileno(), descriptor], timeout)

    def _select(self, descriptors: list[int], timeout: float | None) -> list[int]:
        self._waiting = True
        # Once more: an item may have been put in the meantime, without a wake-up.
        readable, _, _ = select.select(descriptors, [], [], 0 if self._items else timeout)
        self._waiting = False
        if self._wakeup.fileno() in readable:
            self._wakeup.clear()
        return readable

    @contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Let signals interrupt `get` within the block."""
        before = self._wakeup.wake_on_signals()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
