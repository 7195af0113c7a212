"""Things to do later, in somebody else's time: nothing here reads a clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Timers:
    """Calls that are due at some time, earliest first. A call that has become pointless does nothing."""

    __slots__ = ("_heap", "_order", "_soon", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._soon: list[tuple[float, Callable[[float], None]]] = []

    def at(self, when: float, call: Callable[[float], None]) -> None:
        """Call ``call(now)`` at `when`, in seconds, or as soon after as `run` is."""
        heapq.heappush(self._heap, (when, next(self._order), call))

    def after(self, delay: float, call: Callable[[float], None]) -> None:
        """Call ``call(now)`` so many seconds after the next `advance`; for events, which have no time."""
        self._soon.append((delay, call))

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
            heapq.heappop(heap)[2](self.now)

    def settle(self) -> None:
        """Fix the time of what was asked for with `after`."""
        for delay, call in self._soon:
            self.at(self.now + delay, call)
        self._soon.clear()

    def deadline(self) -> float | None:
        """When `run` is wanted next; None if never."""
        return self._heap[0][0] if self._heap else None

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._soon.clear()
