"""How long tasks take, and so how many of them a worker may hold.

A worker should never wait for us between two tasks, which takes several in its queue while tasks are
shorter than a message's way; and no task should wait behind another while a worker is idle, nor be
in doubt when a node is lost, which takes few. Queues are therefore measured in time.
"""

from __future__ import annotations

import math

TARGET = 0.04
"""Seconds of work that a worker may hold. Tasks that take longer are given one at a time."""

COUNT_LIMIT = 128
"""Tasks that a worker may hold: two batches of 64, of which one is under way."""

BYTES_LIMIT = 4 << 20
"""Bytes of calls that a worker may hold; but two tasks always, so that one travels as another runs."""

SLACK = 0.002
"""Seconds of work not worth spreading fairly: about what a message takes both ways."""

_STRANGER = TARGET / 4
_FUNCTIONS_LIMIT = 4096


class ServiceTime:
    """Moving averages of the service time of one shape's tasks, overall and by function.

    Attributes
    ----------
    mean : float
        Seconds a task, of any function; 0 if none has been seen.
    """

    __slots__ = ("_functions", "mean")

    def __init__(self) -> None:
        self.mean = 0.0
        self._functions: dict[int, tuple[float, int]] = {}

    def observe(self, function_id: int, seconds: float, count: int) -> None:
        """Note that `count` tasks in a row took so many seconds each."""
        # Between two looks at the clock there may be no time at all.
        seconds = max(seconds, 1e-6)
        weight = min(1.0, max(0.25, count / 8))
        self.mean += (seconds - self.mean) * (weight if self.mean else 1.0)
        mean, seen = self._functions.get(function_id, (seconds, 0))
        if not seen and len(self._functions) >= _FUNCTIONS_LIMIT:
            self._functions.clear()
        self._functions[function_id] = (mean + (seconds - mean) * weight, seen + count)

    def expected(self, function_id: int) -> float:
        """Seconds to reckon with for a task of this function.

        One that has been seen n times counts for at least an n-th of `TARGET`, so that queues grow
        no faster than the evidence. One that never was is given alone if it is the first of all,
        and else taken for short, but not very: floods of functions called once would crawl.
        """
        known = self._functions.get(function_id)
        if known is None:
            return max(self.mean, _STRANGER) if self.mean else TARGET
        return max(known[0], TARGET / known[1])

    def allowance(self, outstanding: int, workers: int) -> int:
        """Tasks that each of the workers may hold now: by service_time, and by its fair share of them all."""
        mean = self.mean
        if not mean:
            return 1
        window = min(COUNT_LIMIT, math.ceil(TARGET / mean))
        fair = -(-outstanding // (2 * max(1, workers)))
        return max(1, min(window, max(fair, int(SLACK / mean))))
