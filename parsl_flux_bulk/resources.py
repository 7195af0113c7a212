"""What a task or job asks of the instance: ``parsl_resource_specification`` -> :class:`Resources`.

Every key, its type, its unit and the ``flux run`` option that it equals are in
``docs/resources.md``; each is read and checked here, once, so that a mistake raises where the app
is called. :mod:`parsl_flux_bulk.jobspec` turns the result into a jobspec. Parsl is imported only to
raise its error.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from parsl_flux_bulk.constraint import check_constraint, parse_constraint
from parsl_flux_bulk.dependency import check_dependency, parse_dependency
from parsl_flux_bulk.duration import parse_duration
from parsl_flux_bulk.environment import check_rule

DEFAULT_URGENCY = 16
URGENCY_NAMES = {"hold": 0, "default": DEFAULT_URGENCY, "expedite": 31}

_MAX_INT = 2**31 - 1
"""Flux keeps counts in a C int."""


class Shape(NamedTuple):
    """What tasks must have in common to share a warm worker."""

    cores: int = 1
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Resources:
    """A request for resources, checked and complete. Equal requests are equal, and hash equal.

    Attributes
    ----------
    num_tasks : int
        Processes that the job starts (ranks).
    num_nodes : int or None
        Nodes to spread them over; None lets the scheduler choose.
    cores_per_task, gpus_per_task : int
    exclusive : bool
        Whole nodes.
    duration : float
        Seconds; 0 is no limit.
    urgency : int
        0 to 31 (RFC 30). Not part of a jobspec: it goes into the request to submit one.
    queue, bank, name : str or None
    cwd : str or None
        Working directory; if relative, to that of the executor.
    constraint, dependencies, shell_options, attributes : str or None
        JSON text: of an RFC 31 object, of an RFC 26 array, of the jobspec's
        ``attributes.system.shell.options`` and of its ``attributes``.
    environment : tuple of (str, str or None)
        Variables to set, or with None to remove.
    environment_rules : tuple of str
        ``flux run --env`` rules, applied after `environment`.
    shape : Shape or None
        The warm worker that such a task fits in; None if it needs a job of its own.
    """

    num_tasks: int = 1
    num_nodes: int | None = None
    cores_per_task: int = 1
    gpus_per_task: int = 0
    exclusive: bool = False
    duration: float = 0.0
    urgency: int = DEFAULT_URGENCY
    queue: str | None = None
    bank: str | None = None
    name: str | None = None
    cwd: str | None = None
    constraint: str | None = None
    dependencies: str | None = None
    shell_options: str | None = None
    attributes: str | None = None
    environment: tuple[tuple[str, str | None], ...] = ()
    environment_rules: tuple[str, ...] = ()
    shape: Shape | None = None

    @classmethod
    def from_specification(cls, specification: Mapping[str, object]) -> Resources:
        """Read a ``parsl_resource_specification``. A key whose value is None counts as not given.

        Raises
        ------
        parsl.executors.errors.InvalidResourceSpecification
            Names the key, its value, what would be right, and the valid keys.
        """
        if not specification:
            return _DEFAULT
        # The types are in the cache's key because 1, 1.0 and True are equal and hash equal.
        values = tuple(specification.values())
        key = (tuple(specification), values, tuple(map(type, values)))
        try:
            hash(key)
        except TypeError:
            return _read(specification)
        return _read_cached(key)

    @property
    def slots_per_node(self) -> int:
        """Task slots on each node, or in all where the number of nodes is left to the scheduler."""
        return self.num_tasks if self.num_nodes is None else math.ceil(self.num_tasks / self.num_nodes)

    @property
    def cores(self) -> int | None:
        """Cores that the job occupies; None for whole nodes, whose size the instance knows."""
        return None if self.exclusive else self._slots * self.cores_per_task

    @property
    def gpus(self) -> int | None:
        """GPUs that the job occupies; None for whole nodes, whose size the instance knows."""
        return None if self.exclusive else self._slots * self.gpus_per_task

    @property
    def _slots(self) -> int:
        # Tasks that do not divide evenly over the nodes leave some slots empty, but allocated.
        return self.slots_per_node * (self.num_nodes or 1)


_DEFAULT = Resources(shape=Shape())


@functools.lru_cache(maxsize=1024)
def _read_cached(key: tuple[tuple[str, ...], tuple[object, ...], tuple[type, ...]]) -> Resources:
    return _read(dict(zip(key[0], key[1], strict=True)))


# -- one key ---------------------------------------------------------------------------------------
# A reader returns what the value means, or raises ValueError saying what it must be.


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


def _count_or_digits(value: object) -> int:
    # MPIExecutor only ever puts these into a command line, so its users may have written text.
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
    """The path below ``attributes`` that ``flux run --setattr`` gives to a key."""
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
        value = dict(value)
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
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None


_READERS: dict[str, Callable[[object], Any]] = {
    "num_tasks": _integer(1),
    "num_nodes": _integer(1),
    "cores_per_task": _integer(1),
    "gpus_per_task": _integer(0),
    "exclusive": _boolean,
    "duration": parse_duration,
    "urgency": _urgency,
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

VALID_KEYS = tuple(key for key in _READERS if key != "launcher_options")
"""What a specification may name (an empty ``launcher_options`` is tolerated too)."""

_NO_MEMORY = (
    "Flux does not schedule memory; say 'exclusive' for whole nodes, or a 'constraint' for larger ones"
)
_FOREIGN_KEYS = {
    "cores": "say 'cores_per_task'",
    "gpus": "say 'gpus_per_task'",
    "memory": _NO_MEMORY,
    "mem": _NO_MEMORY,
    "disk": "Flux does not schedule disk space; a 'constraint' can choose nodes that have it",
    "priority": "say 'urgency', 0 to 31, of which the larger goes first (a smaller 'priority' did)",
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


# -- the whole -------------------------------------------------------------------------------------


def _read(specification: Mapping[str, object]) -> Resources:
    values: dict[str, Any] = {}
    for key, value in specification.items():
        reader = _READERS.get(key)
        if reader is None:
            _refuse(specification, key, _unknown(key))
        if value is not None:
            try:
                values[key] = reader(value)
            except ValueError as error:
                _refuse(specification, key, str(error))
    shape = None
    if values.keys() <= {"cores_per_task", "gpus_per_task"}:
        shape = Shape(values.get("cores_per_task", 1), values.get("gpus_per_task", 0))
    values.pop("launcher_options", None)
    if "dependency" in values:
        values["dependencies"] = values.pop("dependency")
    if "environment" in values:
        values["environment"], values["environment_rules"] = values["environment"]
    _settle_geometry(specification, values)
    return Resources(**values, shape=shape)


def _settle_geometry(specification: Mapping[str, object], values: dict[str, Any]) -> None:
    """Replace MPIExecutor's keys by Flux's, and fill in what ``flux run`` would."""
    nodes, tasks = values.get("num_nodes"), values.get("num_tasks")
    ranks, per_node = values.pop("num_ranks", None), values.pop("ranks_per_node", None)
    whole_nodes = False
    if ranks is not None or per_node is not None:
        if tasks is not None:
            _refuse(specification, "num_tasks", "must not be together with 'num_ranks' or 'ranks_per_node'")
        if ranks is None:
            if nodes is None:
                _refuse(specification, "ranks_per_node", "needs 'num_nodes' or 'num_ranks' beside it")
            ranks = nodes * per_node
        elif nodes is None and per_node is not None:
            nodes = math.ceil(ranks / per_node)
        elif per_node is not None and math.ceil(ranks / nodes) != per_node:
            low, high = nodes * (per_node - 1) + 1, nodes * per_node
            fits = f"must be {low} to {high} with {nodes} nodes of {per_node} ranks; or leave one of them out"
            _refuse(specification, "num_ranks", fits)
        tasks = ranks
        # MPIExecutor gives the nodes of a task to no other task.
        whole_nodes = nodes is not None
    elif tasks is None and nodes is not None:
        # As flux run has it: nodes without a number of tasks are whole nodes, with a task on each.
        tasks, whole_nodes = nodes, True
    if nodes is not None:
        values["num_nodes"] = nodes
        if nodes > (tasks or 1):
            _refuse(specification, "num_nodes", f"must not be more than the number of tasks, {tasks or 1}")
    if tasks is not None:
        values["num_tasks"] = tasks
    if values.setdefault("exclusive", whole_nodes) and nodes is None:
        _refuse(specification, "exclusive", "needs 'num_nodes': only whole nodes can be exclusive")


def _unknown(key: object) -> str:
    if isinstance(key, str):
        if key in _FOREIGN_KEYS:
            return f"is not a key here: {_FOREIGN_KEYS[key]}"
        if close := difflib.get_close_matches(key.replace("-", "_").lower(), VALID_KEYS, n=1):
            return f"is not a key here; did you mean {close[0]!r}?"
    return "is not a key here"


def _refuse(specification: Mapping[str, object], key: object, reason: str) -> NoReturn:
    from parsl.executors.errors import InvalidResourceSpecification

    raise InvalidResourceSpecification(
        {str(key)},
        f"{key!r}: {specification.get(key)!r} {reason}. Valid keys: {', '.join(VALID_KEYS)}",  # type: ignore[call-overload]
    )
