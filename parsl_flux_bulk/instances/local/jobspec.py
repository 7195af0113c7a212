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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.local.options import (
    DEFAULT_EXIT_TIMEOUT,
    affinity,
    exit_timeout,
    input_path,
    output_streams,
    rlimits,
    warning_signal,
)
from parsl_flux_bulk.instances.local.values import (
    count,
    duration,
    kind,
    mapping,
    only,
    positive,
    strings,
    text,
)

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
    options = mapping(system.get("shell", {}), "attributes.system.shell").get("options", {})
    options = mapping(options, "attributes.system.shell.options")
    request = _resources(spec.get("resources"))
    _check_fit(request, machine)
    _check_conditions(system, machine)
    command, ntasks = _tasks(spec.get("tasks"), request.slots)
    ntasks, tasks_per_core = _per_resource(options.get("per-resource"), ntasks)
    stdout, stderr = output_streams(options)
    return JobPlan(
        command=command,
        environment=_environment(system),
        cwd=_directory(system, machine),
        name=_name(system, command),
        cores=request.slots * request.cores,
        gpus=request.slots * request.gpus,
        exclusive=request.exclusive,
        ntasks=ntasks,
        tasks_per_core=tasks_per_core,
        duration=duration(system.get("duration", 0), "attributes.system.duration"),
        affinity=affinity(options.get("cpu-affinity")),
        gpu_affinity=affinity(options.get("gpu-affinity")),
        stdin=input_path(options),
        stdout=stdout,
        stderr=stderr,
        rlimits=rlimits(options),
        env_expand=strings(options.get("env-expand", {}), "attributes.system.shell.options.env-expand"),
        exit_timeout=exit_timeout(options),
        exit_on_error=bool(options.get("exit-on-error", False)),
        signal=warning_signal(options),
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
        raise JobspecError(f"a jobspec is a JSON object, not {kind(spec)}")
    for key in ("version", "resources", "tasks", "attributes"):
        if key not in spec:
            raise JobspecError(f"the key '{key}' is missing")
    if spec["version"] != 1 or spec["version"] is True:
        raise JobspecError(f"must be 1 (RFC 25), not {spec['version']!r}", "version")
    return spec


def _system(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    attributes = mapping(spec["attributes"], "attributes")
    return mapping(attributes.get("system", {}), "attributes.system")


@dataclass(frozen=True)
class _Request:
    nodes: int
    slots: int
    cores: int
    gpus: int
    exclusive: bool


def _resources(resources: Any) -> _Request:
    vertex, where = only(resources, "resources"), "resources[0]"
    nodes, exclusive = 1, False
    if vertex.get("type") == "node":
        nodes = count(vertex, where)
        exclusive = vertex.get("exclusive") is True
        vertex, where = only(vertex.get("with"), f"{where}.with"), f"{where}.with[0]"
    if vertex.get("type") != "slot":
        found = vertex.get("type")
        raise JobspecError(f"the type must be 'slot' (or 'node' over 'slot'), not {found!r}", where)
    slots = count(vertex, where)
    exclusive = exclusive or vertex.get("exclusive") is True
    parts = vertex.get("with")
    if not isinstance(parts, list) or not parts:
        raise JobspecError("must be a list of 'core', and perhaps 'gpu'", f"{where}.with")
    amounts: dict[str, int] = {}
    for index, part in enumerate(parts):
        at = f"{where}.with[{index}]"
        kind = mapping(part, at).get("type")
        if kind not in ("core", "gpu") or kind in amounts:
            raise JobspecError(f"must be one 'core' and at most one 'gpu', not {kind!r}", at)
        amounts[kind] = count(part, at)
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
    task = only(tasks, "tasks")
    command = task.get("command")
    if isinstance(command, str):
        command = [command]
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise JobspecError("must be a list of one or more strings", "tasks[0].command")
    if not command[0] or any("\0" in word for word in command):
        raise JobspecError("the program's name is empty, or a word has a NUL byte", "tasks[0].command")
    count = mapping(task.get("count", {"per_slot": 1}), "tasks[0].count")
    if list(count) == ["per_slot"]:
        return command, positive(count["per_slot"], "tasks[0].count.per_slot") * slots
    if list(count) == ["total"]:
        return command, positive(count["total"], "tasks[0].count.total")
    raise JobspecError("must have one key, 'per_slot' or 'total'", "tasks[0].count")


def _per_resource(option: Any, ntasks: int) -> tuple[int, int]:
    """Return (tasks, tasks per core): one of the two is 0."""
    where = "attributes.system.shell.options.per-resource"
    if option is None:
        return ntasks, 0
    count = positive(mapping(option, where).get("count", 1), f"{where}.count")
    if option.get("type") == "node":
        return count, 0
    if option.get("type") == "core":
        return 0, count
    raise JobspecError(f"must be 'node' or 'core', not {option.get('type')!r}", f"{where}.type")


def _environment(system: Mapping[str, Any]) -> dict[str, str]:
    environment = strings(system.get("environment", {}), "attributes.system.environment")
    for name in _OF_ANOTHER_INSTANCE:
        environment.pop(name, None)
    return environment


def _directory(system: Mapping[str, Any], machine: Machine) -> str:
    directory = text(system.get("cwd", machine.working_dir), "attributes.system.cwd")
    return os.path.join(machine.working_dir, directory)


def _name(system: Mapping[str, Any], command: list[str]) -> str:
    job = mapping(system.get("job", {}), "attributes.system.job")
    return text(job.get("name", os.path.basename(command[0])), "attributes.system.job.name")
