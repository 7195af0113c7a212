"""Things to do later, in somebody else's time: nothing here reads a clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Timer:
    """One call that is due at some time."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[float], None]) -> None:
        self.call: Callable[[float], None] | None = call

    def cancel(self) -> None:
        """It need not be made."""
        self.call = None


class Timers:
    """Calls that are due at some time, earliest first.

    Attributes
    ----------
    now : float
        The time that it was said to be, in seconds.
    """

    __slots__ = ("_heap", "_order", "_soon", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: list[tuple[float, Timer]] = []

    def at(self, when: float, call: Callable[[float], None]) -> Timer:
        """Call ``call(now)`` at `when`, in seconds, or as soon after as `run` is."""
        timer = Timer(call)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def after(self, delay: float, call: Callable[[float], None]) -> Timer:
        """Call ``call(now)`` so many seconds after the next `advance`; for events, which have no time."""
        timer = Timer(call)
        self._soon.append((delay, timer))
        return timer

    def advance(self, now: float) -> float:
        """Say what time it is; return it, never earlier than before."""
        # Time that went backwards would make durations negative.
        self.now = max(now, self.now)
        self.settle()
        return self.now

    def run(self) -> None:
        """Make the calls that are due."""
        heap = self._heap
        while heap and heap[0][0] <= self.now:
            if (call := heapq.heappop(heap)[2].call) is not None:
                call(self.now)

    def settle(self) -> None:
        """Fix the time of what was asked for with `after`."""
        for delay, timer in self._soon:
            heapq.heappush(self._heap, (self.now + delay, next(self._order), timer))
        self._soon.clear()

    def deadline(self) -> float | None:
        """When `run` is wanted next; None if never."""
        heap = self._heap
        while heap and heap[0][2].call is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
