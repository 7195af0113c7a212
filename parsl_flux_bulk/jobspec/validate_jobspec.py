"""Check a jobspec, and report what is wrong with its place.

The checks are those of Flux's own validator for version 1 (``flux.job``'s ``validate_jobspec``), and of
the JSON reader of its broker. Refused are also a few things that Flux accepts, but that fail in every
job with no more words than "exited with exit code 1"; each is marked *fails at start* below. A duration
that is negative or longer than 31 years is refused, as everywhere. What Flux
accepts and runs is accepted here, even where RFC 25 forbids it, such as a task whose ``slot`` is not a
label, or more than one entry of ``tasks``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec.constraint import check_constraint
from parsl_flux_bulk.jobspec.dependency import check_dependency
from parsl_flux_bulk.jobspec.duration import parse_duration

_KEYS = ("attributes", "resources", "tasks", "version")
_BOM = "\ufeff".encode()
"""Byte order mark, with which some editors begin a file."""
_INT64 = range(-(2**63), 2**63)


def validate(text: str | bytes) -> dict[str, Any]:
    """Parse and check the text of a jobspec; see :meth:`.jobspec.Jobspec.parse`."""
    try:
        decoded = text.removeprefix("\ufeff") if isinstance(text, str) else text.removeprefix(_BOM).decode()
        jobspec = _parse(decoded)
        if "\\u" in decoded or not decoded.isascii():
            check_texts(jobspec)
        return _checked(jobspec)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        where = f"line {before.count(10) + 1} column {error.start - before.rfind(10)}"
        raise JobspecError("not UTF-8 text", where) from None
    except RecursionError:
        raise JobspecError("nested too deeply") from None


def _checked(jobspec: Any) -> dict[str, Any]:
    if not isinstance(jobspec, dict):
        keys = _listed(_KEYS)
        raise JobspecError(f"a jobspec must be a JSON object with the keys {keys}, not {_kind(jobspec)}")
    for key in _KEYS:
        _require(jobspec, key, "")
    for key in jobspec:
        if key not in _KEYS:
            _fail(key, f"unknown key; a jobspec has {_listed(_KEYS)}")
    _check_version(jobspec["version"])
    _check_resources(jobspec["resources"], "resources")
    _check_tasks(jobspec["tasks"])
    _check_attributes(jobspec["attributes"])
    return jobspec


# -- JSON ------------------------------------------------------------------------------------------


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=_integer, parse_float=_real)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg}"
        if not text.strip():
            reason = "empty; a jobspec is a JSON object, as flux run --dry-run prints it"
        elif text.lstrip()[:1] not in ("{", "["):
            reason += "; Flux takes jobspecs as JSON only, so YAML has to be converted"
        raise JobspecError(reason, f"line {error.lineno} column {error.colno}") from None


def _no_constant(name: str) -> NoReturn:
    raise JobspecError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    # Longer than any 64-bit number: int() itself may refuse thousands of digits.
    number = int(digits) if len(digits) <= 20 else 2**63
    if number not in _INT64:
        raise JobspecError(f"the integer {digits[:40]} does not fit into 64 bits")
    return number


def _real(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise JobspecError(f"the number {digits[:40]} is too large")
    return number


def check_texts(value: object, where: str = "") -> None:
    """Raise JobspecError for a string inside `value` that Flux's JSON reader refuses."""
    if isinstance(value, str):
        if "\0" in value:
            _fail(where, f"{value!r} contains a null character")
        try:
            value.encode()
        except UnicodeEncodeError:
            _fail(where, f"{value!r} is not valid Unicode")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_texts(key, f"{where} (a key)" if where else "a key")
            check_texts(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_texts(item, f"{where}[{index}]")


# -- the parts of a jobspec ------------------------------------------------------------------------


def _check_version(version: object) -> None:
    if type(version) is not int or version != 1:
        _fail("version", f"must be the integer 1, not {version!r}")


def _check_resources(resources: Any, where: str) -> None:
    _expect(list, resources, where, "a list of resources")
    if not resources and where == "resources":
        _fail(where, "must not be empty")  # fails at start
    for index, resource in enumerate(resources):
        _check_resource(resource, f"{where}[{index}]")


def _check_resource(resource: Any, where: str) -> None:
    _expect(dict, resource, where, "an object with 'type' and 'count'")
    kind = _require(resource, "type", where)
    _expect(str, kind, f"{where}.type", "a string such as 'node', 'slot' or 'core'")
    least = 1 if kind in ("node", "slot", "core") else 0
    count = _require(resource, "count", where)
    if not isinstance(count, int) or count < least:
        _fail(f"{where}.count", f"must be an integer, {least} or more, not {_shown(count)}")
    for key in ("id", "unit", "label"):
        _expect(str, resource.get(key, ""), f"{where}.{key}", "a string")
    if resource.get("exclusive", False) not in (True, False):
        _fail(f"{where}.exclusive", f"must be true or false, not {_shown(resource['exclusive'])}")
    if kind == "slot":
        _require(resource, "label", where)
    if "with" in resource:
        _check_resources(resource["with"], f"{where}.with")


def _check_tasks(tasks: Any) -> None:
    _expect(list, tasks, "tasks", "a list of tasks")
    if not tasks:
        _fail("tasks", "must not be empty")  # fails at start
    for index, task in enumerate(tasks):
        _check_task(task, f"tasks[{index}]")


def _check_task(task: Any, where: str) -> None:
    _expect(dict, task, where, "an object with 'command', 'slot' and 'count'")
    command = _require(task, "command", where)
    _expect(list, command, f"{where}.command", "a list of strings")
    if not command:
        _fail(f"{where}.command", "must not be empty")
    for index, word in enumerate(command):
        _expect(str, word, f"{where}.command[{index}]", "a string")
    _expect(str, _require(task, "slot", where), f"{where}.slot", "a string, the label of a slot")
    _check_task_count(_require(task, "count", where), f"{where}.count")
    _expect(dict, task.get("attributes", {}), f"{where}.attributes", "an object")


def _check_task_count(count: Any, where: str) -> None:
    either = "exactly one of 'per_slot' and 'total'"
    _expect(dict, count, where, f"an object with {either}")
    if len(count) != 1 or not count.keys() <= {"per_slot", "total"}:
        _fail(where, f"must have {either}, not {_listed(count) or 'nothing'}")
    [(key, number)] = count.items()
    if not isinstance(number, int) or number < 1:
        _fail(f"{where}.{key}", f"must be an integer, 1 or more, not {_shown(number)}")
    if key == "per_slot" and number != 1:
        _fail(f"{where}.per_slot", f"must be 1, not {number}; 'total' can be any number")  # fails at start


def _check_attributes(attributes: Any) -> None:
    where = "attributes"
    _expect(dict, attributes, where, "an object with 'system', and maybe 'user'")
    system = _require(attributes, "system", where)
    for key in attributes:
        if key not in ("system", "user"):
            _fail(f"{where}.{key}", "unknown key; the keys are 'system' and 'user'")
    where = "attributes.system"
    _expect(dict, system, where, "an object")
    duration = _require(system, "duration", where)
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        _fail(f"{where}.duration", f"must be a number of seconds, 0 for no limit, not {_shown(duration)}")
    try:
        parse_duration(duration)
    except ValueError as error:
        _fail(f"{where}.duration", f"{error}, not {_shown(duration)}")
    _expect(list, system.get("dependencies", []), f"{where}.dependencies", "a list")
    for index, dependency in enumerate(system.get("dependencies", [])):
        try:
            check_dependency(dependency)
        except ValueError as error:
            _fail(f"{where}.dependencies[{index}]", str(error))
    if "constraints" in system:
        try:
            check_constraint(system["constraints"])
        except ValueError as error:
            _fail(f"{where}.constraints", str(error))
    # All of these fail at start.
    _expect(str, system.get("cwd", ""), f"{where}.cwd", "a string")
    _expect(dict, system.get("environment", {}), f"{where}.environment", "an object")
    shell = system.get("shell", {})
    _expect(dict, shell, f"{where}.shell", "an object")
    _expect(dict, shell.get("options", {}), f"{where}.shell.options", "an object")


# -- messages --------------------------------------------------------------------------------------


def _expect(kind: type, value: object, where: str, expected: str) -> None:
    if not isinstance(value, kind):
        _fail(where, f"must be {expected}, not {_kind(value)}")


def _require(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in mapping:
        _fail(where, f"the key {key!r} is missing")
    return mapping[key]


def _fail(where: str, reason: str) -> NoReturn:
    raise JobspecError(reason, where)


def _listed(keys: Mapping[str, Any] | tuple[str, ...]) -> str:
    return ", ".join(map(repr, keys))


def _shown(value: object) -> str:
    return _kind(value) if isinstance(value, (dict, list)) else json.dumps(value)


def _kind(value: object) -> str:
    """Return the JSON name of the type of a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", int: "an integer", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
