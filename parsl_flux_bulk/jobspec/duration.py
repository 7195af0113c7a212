"""Parse Flux standard durations (RFC 23), and format durations for people.

A duration is a number with one of the units ``ms``, ``s``, ``m``, ``h``, ``d``; without a unit it
means seconds. Note that ``flux run --time-limit`` alone reads a bare number as *minutes*; jobspecs
and this package never do.
"""

from __future__ import annotations

import datetime
import math
import operator
import re
from typing import Any

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_DURATION = re.compile(r"([0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)(ms|s|m|h|d|)")
_ADVICE = "must be seconds as a number, or a Flux standard duration such as '30s', '5m', '1.5h' or '2d'"

LONGEST = 1e9
"""Seconds of a duration at most, 31 years. Timers of the system overflow at nine times as much."""


def parse_duration(value: object) -> float:
    """Return a duration in seconds.

    Parameters
    ----------
    value : str, int, float or datetime.timedelta
        A Flux standard duration, or a number of seconds.

    Returns
    -------
    float
        Seconds, 0 to LONGEST.

    Raises
    ------
    ValueError
        Says what a duration must look like.

    See also
    --------
    RFC 23, https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_23.html
    """
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError(_ADVICE)
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
    else:
        seconds = _number(value)
    if not math.isfinite(seconds):
        raise ValueError("must be finite; leave it out, or say 0, for no limit")
    if seconds < 0:
        raise ValueError("must not be negative; 0 is no limit")
    if seconds > LONGEST:
        raise ValueError(f"must be at most {LONGEST:g} seconds (31 years); 0 is no limit")
    return seconds


def check_seconds(name: str, value: Any) -> float:
    """Return the value of a parameter in seconds; raise ValueError unless it is a number of seconds."""
    try:
        seconds = float(value + 0.0)  # which takes no string
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= LONGEST:
        raise ValueError(
            f"{name} must be a number of seconds, from 0 to {LONGEST:g} (31 years), not {value!r}"
        )
    return seconds


def _number(value: object) -> float:
    if isinstance(value, float):
        return value
    try:
        if not isinstance(value, bool):
            return float(operator.index(value))  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        pass
    raise ValueError(_ADVICE)


def format_duration(seconds: float) -> str:
    """Return seconds in short, such as ``45s``, ``7m05s`` or ``3h20m``; ``0s`` for less than none."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
