"""What one check found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(str, enum.Enum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    """Jobs run, but something that some of them need is missing."""
    FAILED = "failed"
    """Jobs do not run, or not where they should."""
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    check : str
        What was checked.
    status : Status
    found : str
        What there is, or what is wrong.
    remedy : str
        What to do; "" if there is nothing to do.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """Return the finding of a check that went well."""
    return Finding(check, Status.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Return the finding of something that only some jobs need."""
    return Finding(check, Status.WARNING, found, remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    """Return the finding of something without which jobs do not run."""
    return Finding(check, Status.FAILED, found, remedy)


def skipped(check: str, found: str) -> Finding:
    """Return the finding of a check that was not made."""
    return Finding(check, Status.SKIPPED, found)
