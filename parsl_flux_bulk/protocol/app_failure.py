"""Failures of apps for which the executor makes Parsl's exception, so that a worker need not import Parsl."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NamedTuple


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


class DeferredError(Exception):
    """Stands for one of Parsl's exceptions, which takes its place when it is deserialized.

    Parameters
    ----------
    name : str
        Name of a class in ``parsl.app.errors``.
    args
        Arguments of the class.
    """

    def __init__(self, name: str, *args: Any) -> None:
        super().__init__(name, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, self.args


def parsl_error(name: str, *args: Any) -> Exception:
    """Return an exception of ``parsl.app.errors``; a DeferredError where Parsl is not imported."""
    return _make(name, *args) if "parsl.app.errors" in sys.modules else DeferredError(name, *args)


def _make(name: str, *args: Any) -> Exception:
    error: Exception = getattr(importlib.import_module("parsl.app.errors"), name)(*args)
    return error
