"""Failures of apps for which the executor makes Parsl's exception, so that a worker need not import Parsl."""

from __future__ import annotations

from typing import NamedTuple


class AppFailed(NamedTuple):
    """How an app failed.

    Attributes
    ----------
    status : int or None
        Exit status of the command of a bash app, negative for a signal; None if the walltime was exceeded.
    walltime : float or None
        Seconds, if the app has a walltime.
    places : str
        Where the output is.
    stderr : str
        Last lines of the command's standard error.
    """

    status: int | None = None
    walltime: float | None = None
    places: str = ""
    stderr: str = ""


class AppFailure(Exception):
    """Ends a call with a failure that the executor turns into one of Parsl's exceptions."""

    def __init__(self, record: AppFailed) -> None:
        super().__init__(record)
        self.record = record
