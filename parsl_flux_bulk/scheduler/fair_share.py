"""Whose turn it is, where task jobs and workers want the same cores.

Task jobs go first. When that has kept tasks of a shape waiting for `QUANTUM`, it is the workers' turn,
until they have had as much as the task jobs took meanwhile, and no less than `QUANTUM`. While nobody
else wants the cores there are no turns.
"""

from __future__ import annotations

QUANTUM = 1.0
"""Seconds; the shortest turn."""


class FairShare:
    """Keeps account of who has had how much.

    Attributes
    ----------
    look_at : float or None
        When the turn may change, in seconds, if nothing happens before.
    """

    __slots__ = ("_ends", "_owed", "_pressing_since", "_workers", "look_at")

    def __init__(self) -> None:
        self.look_at: float | None = None
        self._pressing_since: float | None = None
        self._workers = False
        self._ends: float | None = None
        self._owed = 0.0

    def end(self) -> None:
        """Nobody waits for anybody any more."""
        self.look_at = None
        self._pressing_since = None
        self._workers = False
        self._ends = None
        self._owed = 0.0

    def pressing(self, now: float) -> None:
        """A task job takes what tasks of some shape wait for."""
        if self._pressing_since is None:
            self._pressing_since = now
            self.look_at = now + QUANTUM

    def had(self, seconds: float) -> None:
        """A task job has had so many seconds of the whole instance while workers were wanted."""
        self._owed += seconds

    def task_jobs_first(self, now: float, *, served: bool, deprived: bool) -> bool:
        """Whether task jobs may take what workers have or want.

        Parameters
        ----------
        served : bool
            Whether there are workers for some of the tasks that wait.
        deprived : bool
            Whether there would be more of them if there were no task jobs.
        """
        self.look_at = None
        if not self._workers and self._pressing_since is not None:
            end = self._pressing_since + QUANTUM
            if now < end:
                self.look_at = end
            elif deprived:
                self._workers = True
        if not self._workers:
            return True
        if self._ends is None:
            # It begins with the first worker: until then the cores are still being freed.
            if not served:
                return False
            self._ends = now + max(QUANTUM, self._owed)
            self._owed = 0.0
        if now < self._ends:
            self.look_at = self._ends
            return False
        self.end()
        return True
