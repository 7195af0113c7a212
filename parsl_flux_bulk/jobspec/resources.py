"""Read a ``parsl_resource_specification`` into :class:`Resources`.

``docs/resources.md`` has every key, its type, its unit and the equivalent ``flux run`` option. A
mistake raises where the app is called. :func:`.build.build` makes a jobspec of the result. Parsl is
imported only to raise its error.
"""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from parsl_flux_bulk.jobspec.jobspec import DEFAULT_URGENCY
from parsl_flux_bulk.jobspec.validate_resource_keys import READERS, VALID_KEYS, explain_unknown


class Shape(NamedTuple):
    """The cores and GPUs of a worker; tasks of equal shape share workers.

    Workers with fractions share cores, or a GPU: four workers of ``gpus=0.25`` have one GPU.
    """

    cores: float = 1
    gpus: float = 0


@dataclass(frozen=True, slots=True)
class Resources:
    """A valid and complete request for resources. Equal requests compare and hash equal.

    Attributes
    ----------
    num_tasks : int
        Processes that the job starts (ranks).
    num_nodes : int or None
        Nodes to spread them over; None lets the scheduler choose.
    cores_per_task, gpus_per_task : float
        Integers, except where `shape` is a worker's.
    exclusive : bool
        Whole nodes.
    nested : bool
        Start a Flux instance on what the job gets, and run the task in it once.
    duration : float
        Seconds; 0 is no limit.
    urgency : int
        0 to 31 (RFC 30). Not part of a jobspec, but of the request to submit one.
    priority : float or None
        Of a task that waits for a worker: the smallest goes first, None last.
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
    cores_per_task: float = 1
    gpus_per_task: float = 0
    exclusive: bool = False
    nested: bool = False
    duration: float = 0.0
    urgency: int = DEFAULT_URGENCY
    priority: float | None = None
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
        """Read a ``parsl_resource_specification``. A key whose value is None is ignored.

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
        return None if self.exclusive else int(self._slots * self.cores_per_task)

    @property
    def gpus(self) -> int | None:
        """GPUs that the job occupies; None for whole nodes, whose size the instance knows."""
        return None if self.exclusive else int(self._slots * self.gpus_per_task)

    @property
    def _slots(self) -> int:
        # Tasks that do not divide evenly over the nodes leave some slots empty, but allocated.
        return self.slots_per_node * (self.num_nodes or 1)


_DEFAULT = Resources(shape=Shape())


@functools.lru_cache(maxsize=1024)
def _read_cached(key: tuple[tuple[str, ...], tuple[object, ...], tuple[type, ...]]) -> Resources:
    return _read(dict(zip(key[0], key[1], strict=True)))


def _read(specification: Mapping[str, object]) -> Resources:
    values: dict[str, Any] = {}
    for key, value in specification.items():
        reader = READERS.get(key)
        if reader is None:
            _refuse(specification, key, explain_unknown(key))
        if value is not None:
            try:
                values[key] = reader(value)
            except ValueError as error:
                _refuse(specification, key, str(error))
    values.pop("launcher_options", None)
    if values.get("nested") is False:
        del values["nested"]
    shape = None
    if values.keys() <= {"cores_per_task", "gpus_per_task", "priority"}:
        shape = Shape(values.get("cores_per_task", 1), values.get("gpus_per_task", 0))
    else:
        _refuse_fractions(specification, values)
    if "priority" in values:
        if "urgency" in values:
            _refuse(specification, "priority", "must not be together with 'urgency': both order tasks")
        values["urgency"] = _urgency_of(values["priority"])
    if "dependency" in values:
        values["dependencies"] = values.pop("dependency")
    if "environment" in values:
        values["environment"], values["environment_rules"] = values["environment"]
    _settle_geometry(specification, values)
    return Resources(**values, shape=shape)


def _refuse_fractions(specification: Mapping[str, object], values: Mapping[str, Any]) -> None:
    for key in ("cores_per_task", "gpus_per_task"):
        if isinstance(values.get(key), float):
            others = values.keys() - {"cores_per_task", "gpus_per_task", "priority"}
            _refuse(
                specification,
                key,
                f"must be an integer beside {', '.join(sorted(map(repr, others)))}: a job of its own has "
                "whole cores and GPUs. Only workers share them: leave the other keys out",
            )


def _urgency_of(priority: float) -> int:
    """Return the urgency of a task job: 16 for a priority of 0, less for a larger one; 1 to 30."""
    return round(min(max(DEFAULT_URGENCY - priority, 1), 30))


def _settle_geometry(specification: Mapping[str, object], values: dict[str, Any]) -> None:
    """Replace MPIExecutor's keys by Flux's, and fill in the defaults of ``flux run``."""
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
        elif per_node is not None and ranks > nodes * per_node:
            room = f"must be at most {nodes * per_node}, on {nodes} nodes of {per_node} ranks each"
            _refuse(specification, "num_ranks", room)
        tasks = ranks
        # MPIExecutor gives the nodes of a task to no other task.
        whole_nodes = nodes is not None
    elif tasks is None and nodes is not None:
        # As in flux run: nodes without a number of tasks are whole nodes, with one task on each.
        tasks, whole_nodes = nodes, True
    if nodes is not None:
        values["num_nodes"] = nodes
        if nodes > (tasks or 1):
            _refuse(specification, "num_nodes", f"must not be more than the number of tasks, {tasks or 1}")
    if tasks is not None:
        values["num_tasks"] = tasks
    if values.setdefault("exclusive", whole_nodes) and nodes is None:
        _refuse(specification, "exclusive", "needs 'num_nodes': only whole nodes can be exclusive")


def _refuse(specification: Mapping[str, object], key: str, reason: str) -> NoReturn:
    from parsl.executors.errors import InvalidResourceSpecification

    value = _REPR.repr(dict(specification)[key])
    raise InvalidResourceSpecification(
        {key}, f"{key!r}: {value} {reason}. Valid keys: {', '.join(VALID_KEYS)}"
    )


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
