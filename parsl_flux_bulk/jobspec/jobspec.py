"""A jobspec that was checked once: the record that travels from its source to the instance."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parsl_flux_bulk.jobspec.validate_jobspec import validate

DEFAULT_URGENCY = 16
"""RFC 30: 0 holds a job, 31 expedites it, 16 is the default."""

_PARTICULAR = ("queue", "bank", "project", "constraints", "dependencies")

encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""Serialize to JSON as Flux reads it: UTF-8, without NaN."""


class Demand(NamedTuple):
    """What a job needs of the instance that it goes to.

    Attributes
    ----------
    nodes, cores, gpus : int
        Totals of the job.
    exclusive : bool
        Whole nodes.
    duration : float
        Seconds; 0 is no limit.
    particular : bool
        Names something that not every instance has: a queue, a bank, a property, another job.
    """

    nodes: int
    cores: int
    gpus: int
    exclusive: bool = False
    duration: float = 0.0
    particular: bool = False


@dataclass(frozen=True, slots=True)
class Jobspec:
    """A valid jobspec, from :meth:`parse` or :func:`~parsl_flux_bulk.jobspec.build.build`.

    Only `data` is kept, so that a job that waits is in memory once; read-only, because jobs share
    parts of it.

    Attributes
    ----------
    data : dict
        The JSON object of RFC 25, version 1.
    """

    data: dict[str, Any]

    @classmethod
    def parse(cls, text: str | bytes) -> Jobspec:
        """Parse and check the text of a jobspec.

        Raises
        ------
        JobspecError
            Says what is wrong, and where: line and column, or a path such as ``tasks[0].command``.

        See also
        --------
        RFC 25, https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_25.html
        """
        data = validate(text)
        system = data["attributes"]["system"]
        if environment := system.get("environment"):
            system["environment"] = _shared(environment)
        return cls(data)

    @property
    def text(self) -> str:
        """The jobspec as JSON; serialized at each call."""
        return encode(self.data)

    @property
    def system(self) -> dict[str, Any]:
        """The object ``attributes.system``."""
        system: dict[str, Any] = self.data["attributes"]["system"]
        return system

    @property
    def environment(self) -> dict[str, str]:
        """The object ``attributes.system.environment``."""
        environment: dict[str, str] = self.system.get("environment", {})
        return environment

    @property
    def shell_options(self) -> dict[str, Any]:
        """The object ``attributes.system.shell.options``; {} if there is none."""
        options: dict[str, Any] = self.system.get("shell", {}).get("options", {})
        return options

    @property
    def demand(self) -> Demand:
        """What the job needs of an instance."""
        totals, exclusive = self.count_resources()
        system = self.system
        return Demand(
            max(1, totals["node"]),
            totals["core"],
            totals["gpu"],
            exclusive,
            float(system.get("duration") or 0),
            any(key in system for key in _PARTICULAR),
        )

    def count_resources(self) -> tuple[Counter[str], bool]:
        """Return how many resources of each type the job requests, and whether any is exclusive."""
        totals: Counter[str] = Counter()
        exclusive = False

        def visit(resource: dict[str, Any], times: int) -> None:
            nonlocal exclusive
            times *= resource["count"]
            totals[resource["type"]] += times
            exclusive = exclusive or bool(resource.get("exclusive"))
            for inner in resource.get("with", ()):
                visit(inner, times)

        for resource in self.data["resources"]:
            visit(resource, 1)
        return totals, exclusive

    def with_system(self, **changed: Any) -> Jobspec:
        """Return a copy with these keys of ``attributes.system``."""
        attributes = self.data["attributes"]
        system = {**attributes["system"], **changed}
        return Jobspec({**self.data, "attributes": {**attributes, "system": system}})

    def with_output(self, output: Mapping[str, Any]) -> Jobspec:
        """Return a copy with this shell option ``output``."""
        shell = {**self.system.get("shell", {}), "options": {**self.shell_options, "output": output}}
        return self.with_system(shell=shell)


_last: dict[str, Any] = {}
"""The environment that was parsed last."""


def _shared(environment: dict[str, Any]) -> dict[str, Any]:
    """Return an equal environment that shares its strings with others, or itself is shared.

    Jobs of one run have the same environment, or nearly. It is most of a jobspec.
    """
    global _last
    last = _last  # another thread may replace it
    if environment != last:
        last = _last = {
            _share(name): _share(value) if type(value) is str else value
            for name, value in environment.items()
        }
    return last


@functools.lru_cache(maxsize=4096)
def _share(value: str) -> str:
    """Return one object for equal strings."""
    return value
