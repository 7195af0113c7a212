"""Check a jobspec that somebody gives us, and say where in it what is wrong.

Takes what Flux takes: the checks are those of its own validator for version 1 (``flux.job``'s
``validate_jobspec``), and of the JSON reader of its broker. A few things more are refused that Flux
lets in, but which then fail in every job with no more words than "exited with exit code 1"; each is
marked *fails at start* below. What Flux lets in and runs is let in here too, even where RFC 25 says
otherwise, such as a task whose ``slot`` is not a label, or more than one entry of ``tasks``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec.constraint import check_constraint
from parsl_flux_bulk.jobspec.dependency import check_dependency

_KEYS = ("attributes", "resources", "tasks", "version")
_INT64 = range(-(2**63), 2**63)


def validate(text: str | bytes) -> dict[str, Any]:
    """Check the text of a jobspec and return what it says.

    Raises
    ------
    JobspecError
        Says what is wrong, and where: line and column, or a path such as ``tasks[0].command``.

    See also
    --------
    RFC 25, https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_25.html
    """
    try:
        return _validated(_decode(text))
    except RecursionError:
        raise JobspecError("nested too deeply") from None


def _validated(text: str) -> dict[str, Any]:
    jobspec = _parse(text)
    if "\\u" in text or not text.isascii():
        check_texts(jobspec)
    if not isinstance(jobspec, dict):
        raise JobspecError(
            f"a jobspec must be a JSON object with the keys {_listed(_KEYS)}, not {_kind(jobspec)}"
        )
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


# -- text and JSON ---------------------------------------------------------------------------------


def _decode(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise JobspecError("not UTF-8 text", _line_and_column(text, error.start)) from None


def _line_and_column(text: bytes, position: int) -> str:
    before = text[:position]
    return f"line {before.count(10) + 1} column {position - before.rfind(10)}"


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


# -- what a jobspec says ---------------------------------------------------------------------------


def _check_version(version: object) -> None:
    if type(version) is not int or version != 1:
        _fail("version", f"must be the integer 1, not {version!r}")


def _check_resources(resources: object, where: str) -> None:
    if not isinstance(resources, list):
        _fail(where, f"must be a list of resources, not {_kind(resources)}")
    if not resources and where == "resources":
        _fail(where, "must not be empty")  # fails at start
    for index, resource in enumerate(resources):
        _check_resource(resource, f"{where}[{index}]")


def _check_resource(resource: object, where: str) -> None:
    if not isinstance(resource, dict):
        _fail(where, f"must be an object with 'type' and 'count', not {_kind(resource)}")
    kind = _require(resource, "type", where)
    if not isinstance(kind, str):
        _fail(f"{where}.type", f"must be a string such as 'node', 'slot' or 'core', not {_kind(kind)}")
    least = 1 if kind in ("node", "slot", "core") else 0
    count = _require(resource, "count", where)
    if not isinstance(count, int) or count < least:
        _fail(f"{where}.count", f"must be an integer, {least} or more, not {_shown(count)}")
    for key in ("id", "unit", "label"):
        if not isinstance(resource.get(key, ""), str):
            _fail(f"{where}.{key}", f"must be a string, not {_kind(resource[key])}")
    if resource.get("exclusive", False) not in (True, False):
        _fail(f"{where}.exclusive", f"must be true or false, not {_shown(resource['exclusive'])}")
    if kind == "slot":
        _require(resource, "label", where)
    if "with" in resource:
        _check_resources(resource["with"], f"{where}.with")


def _check_tasks(tasks: object) -> None:
    if not isinstance(tasks, list):
        _fail("tasks", f"must be a list of tasks, not {_kind(tasks)}")
    if not tasks:
        _fail("tasks", "must not be empty")  # fails at start
    for index, task in enumerate(tasks):
        _check_task(task, f"tasks[{index}]")


def _check_task(task: object, where: str) -> None:
    if not isinstance(task, dict):
        _fail(where, f"must be an object with 'command', 'slot' and 'count', not {_kind(task)}")
    command = _require(task, "command", where)
    if not isinstance(command, list):
        _fail(f"{where}.command", f"must be a list of strings, not {_kind(command)}")
    if not command:
        _fail(f"{where}.command", "must not be empty")
    for index, word in enumerate(command):
        if not isinstance(word, str):
            _fail(f"{where}.command[{index}]", f"must be a string, not {_kind(word)}")
    slot = _require(task, "slot", where)
    if not isinstance(slot, str):
        _fail(f"{where}.slot", f"must be a string, the label of a slot, not {_kind(slot)}")
    _check_task_count(_require(task, "count", where), f"{where}.count")
    if not isinstance(task.get("attributes", {}), dict):
        _fail(f"{where}.attributes", f"must be an object, not {_kind(task['attributes'])}")


def _check_task_count(count: object, where: str) -> None:
    either = "exactly one of 'per_slot' and 'total'"
    if not isinstance(count, dict):
        _fail(where, f"must be an object with {either}, not {_kind(count)}")
    if len(count) != 1 or not count.keys() <= {"per_slot", "total"}:
        _fail(where, f"must have {either}, not {_listed(count) or 'nothing'}")
    [(key, number)] = count.items()
    if not isinstance(number, int) or number < 1:
        _fail(f"{where}.{key}", f"must be an integer, 1 or more, not {_shown(number)}")
    if key == "per_slot" and number != 1:
        _fail(f"{where}.per_slot", f"must be 1, not {number}; 'total' can be any number")  # fails at start


def _check_attributes(attributes: object) -> None:
    where = "attributes"
    if not isinstance(attributes, dict):
        _fail(where, f"must be an object with 'system', and maybe 'user', not {_kind(attributes)}")
    system = _require(attributes, "system", where)
    for key in attributes:
        if key not in ("system", "user"):
            _fail(f"{where}.{key}", "unknown key; there are 'system' and 'user'")
    if not isinstance(system, dict):
        _fail("attributes.system", f"must be an object, not {_kind(system)}")
    duration = _require(system, "duration", "attributes.system")
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        _fail(
            "attributes.system.duration",
            f"must be a number of seconds, 0 for no limit, not {_shown(duration)}",
        )
    _check_system(system)


def _check_system(system: dict[str, Any]) -> None:
    where = "attributes.system"
    if "dependencies" in system:
        if not isinstance(system["dependencies"], list):
            _fail(f"{where}.dependencies", f"must be a list, not {_kind(system['dependencies'])}")
        for index, dependency in enumerate(system["dependencies"]):
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
    if not isinstance(system.get("cwd", ""), str):
        _fail(f"{where}.cwd", f"must be a string, not {_kind(system['cwd'])}")
    if not isinstance(system.get("environment", {}), dict):
        _fail(f"{where}.environment", f"must be an object, not {_kind(system['environment'])}")
    shell = system.get("shell", {})
    if not isinstance(shell, dict):
        _fail(f"{where}.shell", f"must be an object, not {_kind(shell)}")
    if not isinstance(shell.get("options", {}), dict):
        _fail(f"{where}.shell.options", f"must be an object, not {_kind(shell['options'])}")


# -- words -----------------------------------------------------------------------------------------


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
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", int: "an integer", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
