"""Service times: how long tasks take, and so how many of them a worker may hold.

A worker that waits for a message between two tasks wastes time: while tasks are shorter than a round trip,
it needs several in its queue. A task that is queued behind another while a worker is idle waits for nothing,
and is in doubt when a node is lost: queues must be short. Queues are therefore bounded in seconds of work.
"""

from __future__ import annotations

import math

TARGET = 0.04
"""Seconds of work that a worker may hold. Tasks that take longer are assigned one at a time."""

COUNT_LIMIT = 128
"""Tasks that a worker may hold: two batches of 64, one of them on its way."""

BYTES_LIMIT = 4 << 20
"""Bytes of calls that a worker may hold; but always two tasks, so that one is sent while the other runs."""

SLACK = 0.002
"""Seconds of work not worth spreading over workers: about one round trip of a message."""

_UNSEEN = TARGET / 4
_FUNCTIONS_LIMIT = 4096


class ServiceTime:
    """Moving averages of the service time of one shape's tasks, in total and by function.

    Attributes
    ----------
    mean : float
        Seconds a task, of any function; 0 before the first outcome.
    """

    __slots__ = ("_functions", "mean")

    def __init__(self) -> None:
        self.mean = 0.0
        self._functions: dict[int, tuple[float, int]] = {}

    def observe(self, function_id: int, seconds: float, count: int) -> None:
        """Note that `count` tasks in a row took so many seconds each."""
        # Two readings of the clock can be equal.
        seconds = max(seconds, 1e-6)
        weight = 0.25 if count <= 2 else min(1.0, count / 8)
        self.mean += (seconds - self.mean) * (weight if self.mean else 1.0)
        mean, seen = self._functions.get(function_id, (seconds, 0))
        if not seen and len(self._functions) >= _FUNCTIONS_LIMIT:
            self._functions.clear()
        self._functions[function_id] = (mean + (seconds - mean) * weight, seen + count)

    def expected(self, function_id: int) -> float:
        """Estimate the seconds that a task of this function takes.

        A function that ran n times counts for at least `TARGET` / n, so that queues grow no faster than
        the evidence. An unseen function runs alone if it is the first of all; otherwise its estimate is
        the mean of all functions, at least 10 ms: floods of functions that are called once still flow.
        """
        known = self._functions.get(function_id)
        if known is None:
            return max(self.mean, _UNSEEN) if self.mean else TARGET
        return max(known[0], TARGET / known[1])

    def allowance(self, outstanding: int, workers: int) -> int:
        """Return the number of tasks that each worker may hold now, bounded by time and by its fair share."""
        mean = self.mean
        if not mean:
            return 1
        window = min(COUNT_LIMIT, math.ceil(TARGET / mean))
        fair = -(-outstanding // (2 * max(1, workers)))
        return max(1, min(window, max(fair, int(SLACK / mean))))
