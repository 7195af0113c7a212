"""Parse job dependencies (RFC 26): from the URIs of ``flux run --dependency`` to objects."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?::([^?#\s]*)(?:\?([^#\s]*))?)?")


def parse_dependency(uri: str) -> dict[str, Any]:
    """Translate ``scheme:value[?key=value&...]`` into an RFC 26 object.

    Raises
    ------
    ValueError
        Says what a dependency must look like.

    Examples
    --------
    >>> parse_dependency("afterok:ƒ2oLkTLb")
    {'scheme': 'afterok', 'value': 'ƒ2oLkTLb'}
    >>> parse_dependency("singleton")
    {'scheme': 'singleton', 'value': ''}
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ValueError(
            f"{uri!r} is not a dependency: it must be 'scheme:value', such as 'afterok:ƒ2oLkTLb'"
        )
    dependency: dict[str, Any] = {"scheme": match[1].lower(), "value": match[2] or ""}
    for key, values in parse_qs(match[3] or "").items():
        numbers = [_number(value) for value in values]
        dependency[key] = numbers if len(numbers) > 1 else numbers[0]
    return dependency


def _number(text: str) -> int | float | str:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def check_dependency(dependency: object) -> None:
    """Check an RFC 26 object as Flux does when a job is submitted.

    Raises
    ------
    ValueError
        Says what is wrong and what would be right.
    """
    if not isinstance(dependency, Mapping):
        raise ValueError(f"a dependency must be a mapping with 'scheme' and 'value', not {dependency!r}")
    for key in ("scheme", "value"):
        if key not in dependency:
            raise ValueError(f"a dependency needs the key {key!r}")
        if not isinstance(dependency[key], str):
            raise ValueError(f"the {key!r} of a dependency must be a string, not {dependency[key]!r}")
