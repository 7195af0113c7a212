"""What the embedded instance makes of a jobspec: a :class:`JobPlan`, or a refusal in words.

Pure: no I/O, no processes. Reads RFC 25 jobspec V1 as ``flux submit --dry-run`` and ``flux run
--dry-run`` write it, and the shell options of flux-shell(1) that mean something on one machine.
Options that it does not know it passes over, as Flux's shell does. What would change what a job
*is*, and cannot be had here (several nodes, queues, dependencies, constraints that this host does
not meet), is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parsl_flux_bulk.errors import JobspecError

DEFAULT_EXIT_TIMEOUT = 30.0
"""Seconds that the other tasks of a job have after the first one ended; flux-shell(1)."""

_OF_ANOTHER_INSTANCE = (
    "FLUX_URI",
    "FLUX_KVS_NAMESPACE",
    "FLUX_JOB_ID_PATH",
    "FLUX_PROXY_REMOTE",
    "PMI_FD",
    "PMI_RANK",
    "PMI_SIZE",
)
"""A jobspec made inside a Flux job may carry these; here they would lead to the wrong instance."""

_DURATION = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)(ms|s|m|h|d)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


class Unsatisfiable(Exception):
    """A valid request that this instance can never satisfy."""


@dataclass(frozen=True)
class Machine:
    """What jobs can ask of this machine."""

    hostname: str
    cores: int
    gpus: int
    working_dir: str = "/"


@dataclass(frozen=True)
class Stream:
    """A file that the standard output or error of a job's tasks goes to."""

    path: str
    append: bool = False
    label: bool = False


@dataclass(frozen=True)
class JobPlan:
    """How to run one job; sent to the broker as JSON, so plain values only.

    Attributes
    ----------
    cores, gpus : int
        Totals of the job; with `exclusive` it gets all there are.
    ntasks : int
        Processes to start, or 0: `tasks_per_core` for each core that the job gets.
    duration : float
        Seconds; 0 is without limit.
    affinity, gpu_affinity : str
        ``on``: each task may use all cores (GPUs) of the job; ``per-task``: a share; ``off``.
    stdout, stderr : list or None
        Fields of :class:`Stream`, or None: kept by the instance.
    exit_timeout : float or None
        Seconds that other tasks have after the first one ended.
    signal : list or None
        Signal number, and how many seconds before `duration` ends it is sent.
    """

    command: list[str]
    environment: dict[str, str]
    cwd: str
    name: str
    cores: int
    gpus: int = 0
    exclusive: bool = False
    ntasks: int = 1
    tasks_per_core: int = 0
    duration: float = 0.0
    affinity: str = "on"
    gpu_affinity: str = "on"
    stdin: str = ""
    stdout: list[Any] | None = None
    stderr: list[Any] | None = None
    rlimits: dict[str, int] = field(default_factory=dict)
    env_expand: dict[str, str] = field(default_factory=dict)
    exit_timeout: float | None = DEFAULT_EXIT_TIMEOUT
    exit_on_error: bool = False
    signal: list[float] | None = None
    urgency: int = 16


def plan_job(jobspec: str, machine: Machine, urgency: int = 16) -> JobPlan:
    """Read a jobspec.

    Raises
    ------
    JobspecError
        It is not valid; says where.
    Unsatisfiable
        It is valid, but asks for what this machine does not have.
    """
    spec = _load(jobspec)
    if not 0 <= urgency <= 31:
        raise JobspecError(f"urgency must be 0 to 31, not {urgency}")
    system = _system(spec)
    options = _mapping(system.get("shell", {}), "attributes.system.shell").get("options", {})
    options = _mapping(options, "attributes.system.shell.options")
    request = _resources(spec.get("resources"))
    _check_fit(request, machine)
    _check_conditions(system, machine)
    command, ntasks = _tasks(spec.get("tasks"), request.slots)
    ntasks, tasks_per_core = _per_resource(options.get("per-resource"), ntasks)
    stdout, stderr = _streams(options)
    return JobPlan(
        command=command,
        environment=_environment(system),
        cwd=_text(system.get("cwd", machine.working_dir), "attributes.system.cwd"),
        name=_name(system, command),
        cores=request.slots * request.cores,
        gpus=request.slots * request.gpus,
        exclusive=request.exclusive,
        ntasks=ntasks,
        tasks_per_core=tasks_per_core,
        duration=_duration(system.get("duration", 0), "attributes.system.duration"),
        affinity=_affinity(options.get("cpu-affinity")),
        gpu_affinity=_affinity(options.get("gpu-affinity")),
        stdin=_input(options),
        stdout=stdout,
        stderr=stderr,
        rlimits=_rlimits(options),
        env_expand=_strings(options.get("env-expand", {}), "attributes.system.shell.options.env-expand"),
        exit_timeout=_exit_timeout(options),
        exit_on_error=bool(options.get("exit-on-error", False)),
        signal=_signal(options),
        urgency=urgency,
    )


# -- the parts of a jobspec --------------------------------------------------------------------------


def _load(jobspec: str) -> Mapping[str, Any]:
    try:
        spec = json.loads(jobspec)
    except json.JSONDecodeError as error:
        raise JobspecError(f"not JSON: {error.msg}", f"line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise JobspecError("not a jobspec: nested too deeply") from error
    if not isinstance(spec, dict):
        raise JobspecError(f"a jobspec is a JSON object, not {_kind(spec)}")
    for key in ("version", "resources", "tasks", "attributes"):
        if key not in spec:
            raise JobspecError(f"the key '{key}' is missing")
    if spec["version"] != 1 or spec["version"] is True:
        raise JobspecError(f"must be 1 (RFC 25), not {spec['version']!r}", "version")
    return spec


def _system(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    attributes = _mapping(spec["attributes"], "attributes")
    return _mapping(attributes.get("system", {}), "attributes.system")


@dataclass(frozen=True)
class _Request:
    nodes: int
    slots: int
    cores: int
    gpus: int
    exclusive: bool


def _resources(resources: Any) -> _Request:
    vertex, where = _only(resources, "resources"), "resources[0]"
    nodes, exclusive = 1, False
    if vertex.get("type") == "node":
        nodes = _count(vertex, where)
        exclusive = vertex.get("exclusive") is True
        vertex, where = _only(vertex.get("with"), f"{where}.with"), f"{where}.with[0]"
    if vertex.get("type") != "slot":
        found = vertex.get("type")
        raise JobspecError(f"the type must be 'slot' (or 'node' over 'slot'), not {found!r}", where)
    slots = _count(vertex, where)
    exclusive = exclusive or vertex.get("exclusive") is True
    parts = vertex.get("with")
    if not isinstance(parts, list) or not parts:
        raise JobspecError("must be a list of 'core', and perhaps 'gpu'", f"{where}.with")
    amounts: dict[str, int] = {}
    for index, part in enumerate(parts):
        at = f"{where}.with[{index}]"
        kind = _mapping(part, at).get("type")
        if kind not in ("core", "gpu") or kind in amounts:
            raise JobspecError(f"must be one 'core' and at most one 'gpu', not {kind!r}", at)
        amounts[kind] = _count(part, at)
    if "core" not in amounts:
        raise JobspecError("a slot needs at least one 'core'", f"{where}.with")
    return _Request(nodes, slots, amounts["core"], amounts.get("gpu", 0), exclusive)


def _check_fit(request: _Request, machine: Machine) -> None:
    if request.nodes > 1:
        raise Unsatisfiable(
            f"unsatisfiable request: {request.nodes} nodes; the embedded instance is this one machine"
        )
    for what, wanted, there in (
        ("core", request.slots * request.cores, machine.cores),
        ("GPU", request.slots * request.gpus, machine.gpus),
    ):
        if wanted > there:
            raise Unsatisfiable(
                f"unsatisfiable request: {wanted} {what}{'s' * (wanted != 1)}; the embedded instance on "
                f"{machine.hostname} has {there}"
            )


def _check_conditions(system: Mapping[str, Any], machine: Machine) -> None:
    if system.get("queue"):
        raise Unsatisfiable(f"queue {system['queue']!r}: the embedded instance has no queues")
    if system.get("dependencies"):
        raise Unsatisfiable("dependencies: the embedded instance has none; run the jobs one after the other")
    constraints = system.get("constraints")
    if constraints and not _meets(constraints, machine):
        raise Unsatisfiable(f"constraints {json.dumps(constraints)}: {machine.hostname} does not meet them")


def _meets(constraint: Any, machine: Machine) -> bool:
    """Evaluate an RFC 31 constraint for this host, which has no properties and is rank 0."""
    where = "attributes.system.constraints"
    if not isinstance(constraint, dict) or not all(isinstance(v, list) for v in constraint.values()):
        raise JobspecError("must be an object of operators and lists (RFC 31)", where)
    for operator, values in constraint.items():
        if operator == "hostlist":
            met = machine.hostname in values or "localhost" in values
        elif operator == "ranks":
            met = any(str(value).split("-")[0].split(",")[0] == "0" for value in values)
        elif operator == "properties":  # "^p" asks for nodes without p
            met = all(str(value).startswith("^") for value in values)
        elif operator == "and":
            met = all(_meets(value, machine) for value in values)
        elif operator == "or":
            met = any(_meets(value, machine) for value in values)
        elif operator == "not":
            met = not all(_meets(value, machine) for value in values)
        else:
            raise JobspecError(f"unknown operator {operator!r} (RFC 31)", where)
        if not met:
            return False
    return True


def _tasks(tasks: Any, slots: int) -> tuple[list[str], int]:
    task = _only(tasks, "tasks")
    command = task.get("command")
    if isinstance(command, str):
        command = [command]
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise JobspecError("must be a list of one or more strings", "tasks[0].command")
    if not command[0] or any("\0" in word for word in command):
        raise JobspecError("the program's name is empty, or a word has a NUL byte", "tasks[0].command")
    count = _mapping(task.get("count", {"per_slot": 1}), "tasks[0].count")
    if list(count) == ["per_slot"]:
        return command, _positive(count["per_slot"], "tasks[0].count.per_slot") * slots
    if list(count) == ["total"]:
        return command, _positive(count["total"], "tasks[0].count.total")
    raise JobspecError("must have one key, 'per_slot' or 'total'", "tasks[0].count")


def _per_resource(option: Any, ntasks: int) -> tuple[int, int]:
    """Return (tasks, tasks per core): one of the two is 0."""
    where = "attributes.system.shell.options.per-resource"
    if option is None:
        return ntasks, 0
    count = _positive(_mapping(option, where).get("count", 1), f"{where}.count")
    if option.get("type") == "node":
        return count, 0
    if option.get("type") == "core":
        return 0, count
    raise JobspecError(f"must be 'node' or 'core', not {option.get('type')!r}", f"{where}.type")


def _environment(system: Mapping[str, Any]) -> dict[str, str]:
    environment = _strings(system.get("environment", {}), "attributes.system.environment")
    for name in _OF_ANOTHER_INSTANCE:
        environment.pop(name, None)
    return environment


def _name(system: Mapping[str, Any], command: list[str]) -> str:
    job = _mapping(system.get("job", {}), "attributes.system.job")
    return _text(job.get("name", os.path.basename(command[0])), "attributes.system.job.name")


# -- shell options -----------------------------------------------------------------------------------


def _streams(options: Mapping[str, Any]) -> tuple[list[Any] | None, list[Any] | None]:
    """Standard output and error, the latter with the former's settings where it has none; flux-shell(7)."""
    where = "attributes.system.shell.options.output"
    output = _mapping(options.get("output", {}), where)
    stdout = _mapping(output.get("stdout", {}), f"{where}.stdout")
    stderr = {**stdout, **_mapping(output.get("stderr", {}), f"{where}.stderr")}
    append = output.get("mode") == "append"
    return _stream(stdout, append, f"{where}.stdout"), _stream(stderr, append, f"{where}.stderr")


def _stream(option: Mapping[str, Any], append: bool, where: str) -> list[Any] | None:
    kind = option.get("type", "file" if "path" in option else "kvs")
    if kind == "kvs":
        return None
    if kind != "file":
        raise JobspecError(f"must be 'file' or 'kvs', not {kind!r}", f"{where}.type")
    return [_text(option.get("path"), f"{where}.path"), append, bool(option.get("label", False))]


def _input(options: Mapping[str, Any]) -> str:
    where = "attributes.system.shell.options.input"
    stdin = _mapping(_mapping(options.get("input", {}), where).get("stdin", {}), f"{where}.stdin")
    if stdin.get("type", "service") != "file":
        return ""
    return _text(stdin.get("path"), f"{where}.stdin.path")


def _affinity(option: Any) -> str:
    last = option.split(",")[-1] if isinstance(option, str) else ""  # "verbose,per-task"
    return last if last in ("off", "per-task") else "on"


def _rlimits(options: Mapping[str, Any]) -> dict[str, int]:
    where = "attributes.system.shell.options.rlimit"
    limits = _mapping(options.get("rlimit", {}), where)
    for name, value in limits.items():
        if not isinstance(value, int):
            raise JobspecError(f"must be a whole number, not {_kind(value)}", f"{where}.{name}")
    return dict(limits)


def _exit_timeout(options: Mapping[str, Any]) -> float | None:
    value = options.get("exit-timeout", DEFAULT_EXIT_TIMEOUT)
    if value == "none":
        return None
    return _duration(value, "attributes.system.shell.options.exit-timeout")


def _signal(options: Mapping[str, Any]) -> list[float] | None:
    option = options.get("signal")
    if not option:
        return None
    where = "attributes.system.shell.options.signal"
    values = option if isinstance(option, dict) else {}
    number = _positive(values.get("signum", 10), f"{where}.signum")
    if number > 64:
        raise JobspecError(f"must be the number of a signal, not {number}", f"{where}.signum")
    return [number, _duration(values.get("timeleft", 60.0), f"{where}.timeleft")]


# -- values ------------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise JobspecError(f"must be an object, not {_kind(value)}", where)
    return value


def _strings(value: Any, where: str) -> dict[str, str]:
    for name, text in _mapping(value, where).items():
        if not isinstance(text, str) or "\0" in text:
            raise JobspecError("must be a string without NUL bytes", f"{where}.{name}")
        if not name or "=" in name or "\0" in name:
            raise JobspecError(f"{name!r} is not the name of a variable", where)
    return dict(value)


def _only(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, list) or len(value) != 1:
        found = f"{len(value)}" if isinstance(value, list) else _kind(value)
        raise JobspecError(f"must be a list of exactly one object (jobspec V1, RFC 25), not {found}", where)
    return _mapping(value[0], f"{where}[0]")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise JobspecError("must be a string, not empty, without NUL bytes", where)
    return value


def _count(vertex: Mapping[str, Any], where: str) -> int:
    return _positive(vertex.get("count"), f"{where}.count")


def _positive(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise JobspecError(f"must be a whole number of at least 1, not {json.dumps(value)}", where)
    return value


def _duration(value: Any, where: str) -> float:
    """Seconds, from a number or a Flux standard duration (RFC 23)."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match:
            return float(match[1]) * _SECONDS[match[2].lower() if match[2] else None]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    raise JobspecError(f"must be seconds, or a duration such as '1.5h' (RFC 23), not {value!r}", where)
