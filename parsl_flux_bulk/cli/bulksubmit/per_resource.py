"""Resources that are counted by cores and nodes instead of tasks, such as ``--tasks-per-node``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from parsl_flux_bulk.errors import JobspecError

PER_RESOURCE = ("cores", "tasks_per_node", "tasks_per_core", "gpus_per_node")
_PER_TASK = ("ntasks", "cores_per_task", "gpus_per_task")


class Geometry(NamedTuple):
    """The ``resources`` of a jobspec, and the shell options that belong to them."""

    resources: list[dict[str, Any]]
    shell_options: dict[str, Any]


def per_resource(options: Mapping[str, Any]) -> Geometry | None:
    """Return what the options ask for, as ``flux submit`` does; None without any of PER_RESOURCE.

    Raises
    ------
    JobspecError
        If the options cannot be combined.
    """
    given = [name for name in PER_RESOURCE if options[name] is not None]
    if not given:
        return None
    for name in _PER_TASK:
        if options[name] is not None:
            raise JobspecError(f"{_flag(given[0])} and {_flag(name)} exclude each other")
    cores, per_node, per_core, gpus = (integer(options, name) for name in PER_RESOURCE)
    nodes = integer(options, "nodes")
    if per_node and per_core:
        raise JobspecError("give --tasks-per-node or --tasks-per-core, not both")
    if nodes is None:
        for option, is_given in (("--gpus-per-node", gpus), ("--exclusive", options["exclusive"])):
            if is_given:
                raise JobspecError(f"{option} needs --nodes")
        if cores is None:
            raise JobspecError(f"{_flag(given[0])} needs --nodes or --cores")
    if nodes and cores and cores % nodes:
        raise JobspecError(f"--cores {cores} must be a multiple of --nodes {nodes}")
    inside = [{"type": "core", "count": cores // nodes if cores and nodes else 1}]
    if gpus:
        inside.append({"type": "gpu", "count": gpus})
    slot = {"type": "slot", "count": 1 if nodes else cores, "with": inside, "label": "task"}
    resources: dict[str, Any] = slot
    if nodes:
        resources = {"type": "node", "count": nodes, "with": [slot]}
        if options["exclusive"] or cores is None:
            resources["exclusive"] = True
    if not (per_node or per_core):
        return Geometry([resources], {})
    shell = {"type": "node" if per_node else "core", "count": per_node or per_core}
    return Geometry([resources], {"per-resource": shell})


def integer(options: Mapping[str, Any], name: str) -> int | None:
    """Return the number that an option has.

    Raises
    ------
    JobspecError
        If it has something else.
    """
    text = options[name]
    if text is None:
        return None
    if text.isascii() and text.isdigit() and (int(text) > 0 or name.startswith("gpus")):
        return int(text)
    raise JobspecError(f"{_flag(name)} must be an integer of at least 1, not {text!r}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
