"""Find out which value of a function, or of an argument, cannot be serialized."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from parsl_flux_bulk.protocol import by_value, serialize


def culprit(obj: object) -> str:
    """Name the variable that keeps an object from being serialized, and the function that uses it.

    Returns
    -------
    str
        Empty if there is no better name for the value than the object itself.
    """
    return _culprit(obj, set())


def _culprit(obj: object, seen: set[int]) -> str:
    seen.add(id(obj))
    for description, value in _parts(obj):
        if id(value) not in seen and not _is_serializable(value):
            return _culprit(value, seen) or f"{description.format(type(value).__qualname__)}"
    return ""


def _parts(obj: object) -> Iterator[tuple[str, Any]]:
    """Yield what is serialized with an object, and how to name it."""
    obj = inspect.unwrap(obj) if callable(obj) and not isinstance(obj, type) else obj
    if isinstance(obj, FunctionType):
        if by_value.is_importable(obj):
            return
        user = f", of type {{}}, which the function {obj.__qualname__} uses"
        if not by_value.globals_are_importable(obj):
            from parsl_flux_bulk.protocol.script_globals import globals_of

            for name, value in globals_of(obj).items():
                yield f"the global variable {name!r}{user}", value
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
            if not by_value.is_empty(cell):
                yield f"the variable {name!r} of an enclosing function{user}", cell.cell_contents
        defaults: dict[Any, Any] = {**(obj.__kwdefaults__ or {}), **dict(enumerate(obj.__defaults__ or ()))}
        for key, value in defaults.items():
            yield f"the default {key!r}{user}", value
        for name, value in vars(obj).items():
            yield f"the attribute {name!r}, of type {{}}, of the function {obj.__qualname__}", value
    elif isinstance(obj, type):
        if not by_value.is_importable(obj):
            for name, value in vars(obj).items():
                function = getattr(value, "__func__", getattr(value, "fget", value))
                yield f"the attribute {name!r}, of type {{}}, of the class {obj.__qualname__}", function
    else:
        yield "the class {}", type(obj)
        for name, value in getattr(obj, "__dict__", {}).items():
            yield (
                f"the attribute {name!r}, of type {{}}, of an object of type {type(obj).__qualname__}",
                value,
            )


def _is_serializable(obj: object) -> bool:
    try:
        serialize.dumps(obj)
    except (Exception, SystemExit):
        return False
    return True
