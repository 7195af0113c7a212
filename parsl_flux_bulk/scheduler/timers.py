"""Calls that are due later, by a clock that others read: nothing here knows the time by itself."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

RUN_LIMIT = 1000
"""Calls made in one `run`; `deadline` is in the past while more are due."""


class Timer:
    """One call that is due at some time."""

    __slots__ = ("arguments", "call")

    def __init__(self, call: Callable[..., None], arguments: tuple[Any, ...] = ()) -> None:
        self.call: Callable[..., None] | None = call
        self.arguments = arguments

    def cancel(self) -> None:
        """Drop the call."""
        self.call = None


class Timers:
    """Calls that are due at some time, earliest first.

    Attributes
    ----------
    now : float
        The time passed to the latest `advance`, in seconds.
    """

    __slots__ = ("_heap", "_order", "_relative", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._relative: list[tuple[float, Timer]] = []

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> Timer:
        """Call ``call(*arguments, now)`` in the first `run` at or after `when`, in seconds."""
        timer = Timer(call, arguments)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def after(self, delay: float, call: Callable[[float], None]) -> Timer:
        """Call ``call(now)`` so many seconds after the next `advance`: events carry no time."""
        timer = Timer(call)
        self._relative.append((delay, timer))
        return timer

    def wake(self, when: float) -> None:
        """Make `deadline` no later than `when`: a pass of the scheduler is all that is wanted then."""
        self.at(when, lambda _: None)

    def advance(self, now: float) -> float:
        """Set the time; return it, never earlier than before."""
        # Time that went backwards would make durations negative.
        self.now = max(now, self.now)
        self.settle()
        return self.now

    def run(self) -> None:
        """Make the calls that are due, at most `RUN_LIMIT` of them."""
        heap, left = self._heap, RUN_LIMIT
        while heap and heap[0][0] <= self.now and left:
            left -= 1
            timer = heapq.heappop(heap)[2]
            if timer.call is not None:
                timer.call(*timer.arguments, self.now)

    def settle(self) -> None:
        """Fix the time of the calls that were requested with `after`."""
        for delay, timer in self._relative:
            heapq.heappush(self._heap, (self.now + delay, next(self._order), timer))
        self._relative.clear()

    def deadline(self) -> float | None:
        """Return when `run` has something to do; None if never."""
        heap = self._heap
        while heap and heap[0][2].call is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
