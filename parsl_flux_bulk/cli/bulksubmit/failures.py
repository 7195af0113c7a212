"""The failures of a run, grouped by cause, and which of them are retried."""

from __future__ import annotations

from dataclasses import dataclass, field

from parsl_flux_bulk.instances.base import EndCause, JobResult, JobStatus
from parsl_flux_bulk.protocol.stderr_tail import last_lines

SHOWN_CAUSES = 20
SHOWN_NAMES = 3
STDERR_LINES = 5

RETRY_ON = ("exit", "lost", "timeout")
"""What --retry-on takes, beside exit statuses: exit status or signal, lost node, end of the time limit."""


@dataclass
class _Group:
    why: str
    tail: list[str]
    count: int = 0
    names: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        if self.count == 1:
            return [f"  {self.names[0]}: {self.why}", *self.tail]
        more = self.count - len(self.names)
        names = ", ".join(self.names) + (f" and {more} more" if more else "")
        return [
            f"  {self.count} jobs: {self.why}",
            f"      {names}",
            *self.tail,
        ]


class Failures:
    """Failures of one cause are one entry: a count, some names, and the last lines of standard error.

    Attributes
    ----------
    count : int
    """

    def __init__(self) -> None:
        self.count = 0
        self._groups: dict[tuple[str, str], _Group] = {}
        self._others = 0

    def add(self, name: str, why: str, stderr: str) -> None:
        """Add a failure; its cause is `why`, and the last line of `stderr`."""
        self.count += 1
        key = why, last_lines(stderr, 1)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) == SHOWN_CAUSES:
                self._others += 1
                return
            tail = [f"      | {line}" for line in last_lines(stderr, STDERR_LINES).splitlines()]
            group = self._groups[key] = _Group(why, tail)
        group.count += 1
        if len(group.names) < SHOWN_NAMES:
            group.names.append(name)

    def lines(self) -> list[str]:
        """Return the lines to print."""
        lines = [line for group in self._groups.values() for line in group.lines()]
        if self._others:
            lines.append(f"  and {self._others} more; --json FILE lists all")
        return lines


@dataclass(frozen=True)
class Retries:
    """Which failed jobs run again.

    Attributes
    ----------
    most : int
        Retries of each job.
    on : frozenset of str
        Words of RETRY_ON and exit statuses.
    """

    most: int = 0
    on: frozenset[str] = frozenset(("exit", "lost"))

    def applies(self, result: JobResult, retries: int) -> bool:
        """Whether a job that ended so, after this number of retries, runs again."""
        what = {_kind(result), str(result.exit_code)}
        return retries < self.most and not result.ok and not what.isdisjoint(self.on)


def _kind(result: JobResult) -> str:
    if result.status is JobStatus.TIMEOUT:
        return "timeout"
    if (
        result.cause is EndCause.BLOCK_LOST
        or "lost contact" in result.note
        or result.exception == "node-failure"
    ):
        return "lost"
    if result.status is JobStatus.CANCELED or result.refused or result.cause is EndCause.INSTANCE_LOST:
        return ""
    return "exit"
