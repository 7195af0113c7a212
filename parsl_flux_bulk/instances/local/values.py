"""Reading single values of a jobspec; each error says where it was. Used by the embedded instance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from parsl_flux_bulk.errors import JobspecError

_DURATION = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)(ms|s|m|h|d)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def kind(value: Any) -> str:
    """Name the JSON type of a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        raise JobspecError(f"must be an object, not {kind(value)}", where)
    return value


def strings(value: Any, where: str) -> dict[str, str]:
    """Return an object of texts, fit for an environment."""
    for name, content in mapping(value, where).items():
        if not isinstance(content, str) or "\0" in content:
            raise JobspecError("must be a string without NUL bytes", f"{where}.{name}")
        if not name or "=" in name or "\0" in name:
            raise JobspecError(f"{name!r} is not the name of a variable", where)
    return dict(value)


def only(value: Any, where: str) -> Mapping[str, Any]:
    """Return the one object of a list."""
    if not isinstance(value, list) or len(value) != 1:
        found = f"{len(value)}" if isinstance(value, list) else kind(value)
        raise JobspecError(f"must be a list of exactly one object (jobspec V1, RFC 25), not {found}", where)
    return mapping(value[0], f"{where}[0]")


def text(value: Any, where: str) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise JobspecError("must be a string, not empty, without NUL bytes", where)
    return value


def count(vertex: Mapping[str, Any], where: str) -> int:
    """Return the count of a resource."""
    return positive(vertex.get("count"), f"{where}.count")


def positive(value: Any, where: str) -> int:
    """Return a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise JobspecError(f"must be a whole number of at least 1, not {json.dumps(value)}", where)
    return value


def duration(value: Any, where: str) -> float:
    """Seconds, from a number or a Flux standard duration (RFC 23)."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match:
            return float(match[1]) * _SECONDS[match[2].lower() if match[2] else None]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    raise JobspecError(f"must be seconds, or a duration such as '1.5h' (RFC 23), not {value!r}", where)
