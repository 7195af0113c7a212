"""Blocks that end before they join: how many in a row, and how long to wait before the next attempt.

::

    blocks fail ──> pause 5 s, 10 s, 20 s, ... 10 min ──> one block at a time
    a block joins ──> no pause, and what failed before does not count any more

No clock and no I/O.
"""

from __future__ import annotations

from collections.abc import Collection

FIRST_PAUSE = 5.0
"""Seconds from the first failure to the next attempt; each further pause is twice as long."""

LONGEST_PAUSE = 600.0
"""Seconds of the longest pause."""


class StartFailures:
    """Failures in a row.

    Block ids are numbers in the order in which the blocks were launched.

    Attributes
    ----------
    in_a_row : int
        Attempts since the last block joined of which some block failed; blocks that fail during a pause
        belong to the attempt before.
    forgiven : set of str
        Blocks that failed and were launched before another one that joined.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.forgiven: set[str] = set()
        self._failed: set[str] = set()
        self._joined = -1
        self._not_before = 0.0

    def note(self, failed: Collection[str], joined: Collection[str], now: float) -> float | None:
        """Note all blocks that failed and all that joined, ever; return the new pause, in seconds, if any."""
        new = set(failed) - self._failed
        self._failed |= new
        latest = max(map(int, joined), default=-1)
        if latest > self._joined:
            self._joined = latest
            self.forgiven = {block_id for block_id in self._failed if int(block_id) < latest}
            self.in_a_row = 0
            self._not_before = 0.0
        if not new - self.forgiven or now < self._not_before:
            return None
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**self.in_a_row)
        self.in_a_row += 1
        self._not_before = now + pause
        return pause

    def allowed(self, wanted: int, now: float) -> int:
        """Return how many of the wanted blocks may be launched now."""
        if now < self._not_before:
            return 0
        return min(wanted, 1) if self.in_a_row else wanted
