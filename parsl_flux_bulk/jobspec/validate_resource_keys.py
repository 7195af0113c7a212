"""Validate the keys of a ``parsl_resource_specification``, one by one.

A *reader* takes the user's value of one key and returns it in a hashable form, or raises ValueError
with a phrase that says what the value must be. :mod:`parsl_flux_bulk.jobspec.resources` combines the
keys; ``docs/resources.md`` has a table of them.
"""

from __future__ import annotations

import copy
import math
import numbers
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any

from parsl_flux_bulk.jobspec.constraint import check_constraint, parse_constraint
from parsl_flux_bulk.jobspec.dependency import check_dependency, parse_dependency
from parsl_flux_bulk.jobspec.duration import parse_duration
from parsl_flux_bulk.jobspec.environment import check_rule
from parsl_flux_bulk.jobspec.jobspec import DEFAULT_URGENCY, encode

URGENCY_NAMES = {"hold": 0, "default": DEFAULT_URGENCY, "expedite": 31}

_MAX_INT = 2**31 - 1
"""Flux keeps counts in a C int."""


def _integer(low: int, high: int = _MAX_INT) -> Callable[[object], int]:
    wanted = f"must be an integer, {low} " + ("or more" if high == _MAX_INT else f"to {high}")

    def read(value: object) -> int:
        if isinstance(value, bool):
            raise ValueError(wanted)
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError(wanted) from None
        if not low <= number <= high:
            raise ValueError(wanted)
        return number

    return read


def _cores(value: object) -> int | float:
    wanted = "must be an integer, 1 or more; or a fraction such as 0.5, for workers that share cores"
    number = _number(value, wanted)
    if not 0 < number <= _MAX_INT:
        raise ValueError(wanted)
    return number


def _gpus(value: object) -> int | float:
    wanted = (
        "must be an integer, 0 or more; or a fraction below 1 such as 0.25, for four workers that share a GPU"
    )
    number = _number(value, wanted)
    if not 0 <= number <= _MAX_INT or (isinstance(number, float) and number > 1):
        raise ValueError(wanted)
    return number


def _number(value: object, wanted: str) -> int | float:
    """Return an integer, or a float that is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        try:
            return _integer(0)(value)
        except ValueError:
            raise ValueError(wanted) from None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(wanted)
    return int(number) if number.is_integer() else number


def _count_or_digits(value: object) -> int:
    # MPIExecutor only puts these into a command line, so its users may have written strings.
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return _integer(1)(value)


def _urgency(value: object) -> int:
    if isinstance(value, str) and value in URGENCY_NAMES:
        return URGENCY_NAMES[value]
    try:
        return _integer(0, 31)(value)
    except ValueError as error:
        raise ValueError(f"{error}, or one of {', '.join(map(repr, URGENCY_NAMES))}") from None


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be True or False")
    return value


def _priority(value: object) -> float:
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError("must be a number that a float can hold, of which the smaller goes first")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a string that is not empty")
    return value


def _path(value: object) -> str:
    try:
        return _text(os.fspath(value))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ValueError("must be the path of a directory, as a string or a pathlib.Path") from None


def _constraint(value: object) -> str:
    if isinstance(value, Mapping):
        check_constraint(value)
        return _json(value)
    return _json(parse_constraint(" ".join(_strings(value, "a --requires expression, or an RFC 31 mapping"))))


def _dependencies(value: object) -> str:
    entries = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ValueError("must be an RFC 26 dependency such as 'afterok:ƒ1', or a list of them")
    dependencies = []
    for entry in entries:
        if isinstance(entry, str):
            entry = parse_dependency(entry)
        check_dependency(entry)
        dependencies.append(entry)
    return _json(dependencies)


def _environment(value: object) -> tuple[tuple[tuple[str, str | None], ...], tuple[str, ...]]:
    if not isinstance(value, Mapping):
        rules = _strings(value, "a mapping of names to values, or rules as flux run --env takes them,")
        for rule in rules:
            check_rule(rule)
        return (), tuple(rules)
    for name, setting in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} cannot be the name of an environment variable")
        if setting is not None and (not isinstance(setting, str) or "\0" in setting):
            raise ValueError(f"the value of {name} must be a string, or None to remove it, not {setting!r}")
    return tuple(value.items()), ()


def _shell_options(value: object) -> str:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping such as {'mpi': 'none', 'cpu-affinity': 'per-task'}")
    options: dict[str, Any] = {}
    for key, setting in value.items():
        _put(options, key, key, setting)
    return _json(options)


# Attributes that have a key of their own in the specification, which checks them.
_OWN_KEY = {
    "system.duration": "duration",
    "system.queue": "queue",
    "system.bank": "bank",
    "system.cwd": "cwd",
    "system.environment": "environment",
    "system.constraints": "constraint",
    "system.dependencies": "dependency",
    "system.job.name": "name",
    "system.shell.options": "shell_options",
}


def _attributes(value: object) -> str:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping such as {'system.project': 'x', 'user.note': 'y'}")
    attributes: dict[str, Any] = {}
    for key, setting in value.items():
        path = _attribute_path(key)
        for reserved, own in _OWN_KEY.items():
            if f"{path}.".startswith(f"{reserved}.") or f"{reserved}.".startswith(f"{path}."):
                raise ValueError(f"{key!r} is what the key {own!r} is for")
        _put(attributes, key, path, setting)
    return _json(attributes)


def _attribute_path(key: object) -> str:
    """Return the path below ``attributes`` that ``flux run --setattr`` gives to a key."""
    if not isinstance(key, str):
        raise ValueError(f"{key!r} must be a string such as 'system.project'")
    if key.startswith("."):
        path = key[1:]
    elif key.startswith("attributes."):
        path = key.removeprefix("attributes.")
    else:
        path = key if key.startswith(("system.", "user.")) else f"system.{key}"
    if not path.startswith(("system.", "user.")):
        raise ValueError(f"{key!r} is neither below 'system.' nor below 'user.'")
    return path


def _put(tree: dict[str, Any], key: object, path: object, value: object) -> None:
    """Set ``tree[a][b][c]`` for the path ``a.b.c``."""
    if not isinstance(path, str) or not all(path.split(".")):
        raise ValueError(f"{key!r} must be a name, or names joined by single dots")
    if isinstance(value, Mapping):
        value = copy.deepcopy(dict(value))
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{key!r} lies below a key that has a value already")
    if last in tree:
        raise ValueError(f"{key!r} is set twice, or is above another key")
    tree[last] = value


def _no_launcher_options(value: object) -> None:
    if value != "":
        raise ValueError(
            "is for the command line of srun, mpiexec or aprun, which Flux does not need; see 'shell_options'"
        )


def _strings(value: object, wanted: str) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not strings or not all(isinstance(s, str) for s in strings):
        raise ValueError(f"must be {wanted} as a string or a list of strings")
    return list(strings)


def _json(value: object) -> str:
    try:
        return encode(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None


READERS: dict[str, Callable[[object], Any]] = {
    "num_tasks": _integer(1),
    "num_nodes": _integer(1),
    "cores_per_task": _cores,
    "gpus_per_task": _gpus,
    "exclusive": _boolean,
    "nested": _boolean,
    "duration": parse_duration,
    "urgency": _urgency,
    "priority": _priority,
    "queue": _text,
    "bank": _text,
    "constraint": _constraint,
    "dependency": _dependencies,
    "name": _text,
    "environment": _environment,
    "cwd": _path,
    "shell_options": _shell_options,
    "attributes": _attributes,
    "num_ranks": _count_or_digits,
    "ranks_per_node": _count_or_digits,
    "launcher_options": _no_launcher_options,
}

VALID_KEYS = tuple(key for key in READERS if key != "launcher_options")
"""Valid keys of a specification; an empty ``launcher_options`` is valid, too."""

_NO_MEMORY = (
    "Flux does not schedule memory; say 'exclusive' for whole nodes, or a 'constraint' for larger ones"
)
_FOREIGN_KEYS = {
    "cores": "say 'cores_per_task'",
    "gpus": "say 'gpus_per_task'",
    "memory": _NO_MEMORY,
    "mem": _NO_MEMORY,
    "disk": "Flux does not schedule disk space; a 'constraint' can choose nodes that have it",
    "category": "say 'name', or 'attributes' such as {'user.category': ...}",
    "running_time_min": "no lower bound is needed; the upper one is 'duration'",
    "running_time_max": "say 'duration'",
    "walltime": "say 'duration'; a bash app's walltime is an argument of the app itself",
    "time_limit": "say 'duration'",
    "requires": "say 'constraint'",
    "setopt": "say 'shell_options'",
    "setattr": "say 'attributes'",
    "mpi": "say 'shell_options': {'mpi': ...}",
    "tasks_per_node": "say 'num_nodes' and 'ranks_per_node'",
}


def explain_unknown(key: object) -> str:
    """Return the message for an unknown key: which key would be right."""
    if isinstance(key, str):
        if key in _FOREIGN_KEYS:
            return f"is not a key here: {_FOREIGN_KEYS[key]}"
        import difflib  # slow to import

        if close := difflib.get_close_matches(key.replace("-", "_").lower(), VALID_KEYS, n=1):
            return f"is not a key here; {close[0]!r} is"
    return "is not a key here"
