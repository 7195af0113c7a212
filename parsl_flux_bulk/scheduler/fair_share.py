"""Fair shares of task jobs and workers, where both want the same cores.

Task jobs have priority. When they have kept tasks of a shape waiting for `QUANTUM`, workers get priority,
until they have used the cores for as long as the task jobs did meanwhile, and at least for `QUANTUM`.
Without competition, nobody has priority.
"""

from __future__ import annotations

QUANTUM = 1.0
"""Seconds for which workers have priority, at least."""


class FairShare:
    """Decides who has priority.

    Attributes
    ----------
    check_at : float or None
        When priority may change, in seconds, if nothing happens before.
    """

    __slots__ = ("_contended_since", "_task_job_use", "_workers_first", "_workers_until", "check_at")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Note that there is no competition."""
        self.check_at: float | None = None
        self._contended_since: float | None = None
        self._workers_first = False
        self._workers_until: float | None = None
        self._task_job_use = 0.0

    def task_job_competes(self, now: float) -> None:
        """Note that a task job gets cores for which tasks of some shape wait."""
        if self._contended_since is None:
            self._contended_since = now
            self.check_at = now + QUANTUM

    def task_job_used(self, seconds: float) -> None:
        """Note that task jobs used the whole instance for so many seconds while tasks waited for workers."""
        self._task_job_use += seconds

    def task_jobs_first(self, now: float, *, served: bool, deprived: bool) -> bool:
        """Tell whether task jobs may take what workers have or want.

        Parameters
        ----------
        served : bool
            Whether some of the waiting tasks have workers.
        deprived : bool
            Whether they would have more workers without the task jobs.
        """
        self.check_at = None
        if not self._workers_first and self._contended_since is not None:
            end = self._contended_since + QUANTUM
            if now < end:
                self.check_at = end
            elif deprived:
                self._workers_first = True
        if not self._workers_first:
            return True
        if self._workers_until is None:
            # Their time begins with the first worker: until then, cores are still being freed.
            if not served:
                return False
            self._workers_until = now + max(QUANTUM, self._task_job_use)
            self._task_job_use = 0.0
        if now < self._workers_until:
            self.check_at = self._workers_until
            return False
        self.reset()
        return True
