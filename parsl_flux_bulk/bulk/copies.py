"""Numbers of copies: ``--cc=IDSET`` and ``--copies N``."""

from __future__ import annotations

import itertools
import re

_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?", re.ASCII)


def parse_idset(text: str) -> list[range]:
    """Return the ranges of an idset (RFC 22), in ascending order.

    Raises
    ------
    ValueError
        Says what an idset must look like.

    Examples
    --------
    >>> parse_idset("0-3,7")
    [range(0, 4), range(7, 8)]
    """
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    ranges = []
    for element in inner.split(","):
        match = _RANGE.fullmatch(element)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if high < low or high >= 2**31:
            raise ValueError(f"{text!r} is not a set of numbers such as '0-3,7'")
        ranges.append(range(low, high + 1))
    ranges.sort(key=lambda part: part.start)
    for left, right in itertools.pairwise(ranges):
        if left.stop > right.start:
            raise ValueError(f"{text!r} has {right.start} twice")
    return ranges
