"""Send the jobspecs of one run without repeating what they have in common.

The jobs of a run differ in their commands, and perhaps in a few variables of an environment that is most of a
jobspec. :class:`CommonParts` compares each jobspec with the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from parsl_flux_bulk.jobspec.jobspec import Jobspec, encode

MOST_OWN_VARIABLES = 16
"""Variables in which an environment may differ from the one before, without being sent whole."""


class Parts(NamedTuple):
    """A jobspec, taken apart.

    Attributes
    ----------
    same : bool
        All but the commands and the environment is as in the jobspec before.
    rest : str
        That part, as JSON.
    environment : dict or None
        The whole environment; None if `own` says how it differs from the last that was sent whole.
    own : dict
        Variables that are not in it, or have other values.
    """

    same: bool
    rest: str
    environment: Mapping[str, str] | None
    own: Mapping[str, str]


class CommonParts:
    """The sender's memory of the last jobspec."""

    def __init__(self) -> None:
        self._rest = ""
        self._environment: Mapping[str, str] | None = None

    def split(self, jobspec: Jobspec) -> Parts:
        """Take a jobspec apart; the next one is compared with it after `sent`."""
        data = jobspec.data
        system = dict(jobspec.system)
        if "environment" in system:
            system["environment"] = {}
        rest = encode(
            {
                **data,
                "attributes": {**data["attributes"], "system": system},
                "tasks": [{**task, "command": []} for task in data["tasks"]],
            }
        )
        environment = jobspec.environment
        own = None if self._environment is None else _difference(environment, self._environment)
        if own is None:
            return Parts(rest == self._rest, rest, environment, {})
        return Parts(rest == self._rest, rest, None, own)

    def sent(self, parts: Parts) -> None:
        """Note that the receiver has these parts."""
        self._rest = parts.rest
        if parts.environment is not None:
            self._environment = parts.environment


def _difference(environment: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str] | None:
    """Return the variables that `base` lacks; None if those are many, or `base` has others."""
    if environment is base or environment == base:
        return {}
    try:
        own = dict(environment.items() - base.items())
    except TypeError:  # a value that is no string, which is refused later
        return None
    return own if len(own) <= MOST_OWN_VARIABLES and base.keys() <= environment.keys() else None


def pack_jobspec(parts: Parts, jobspec: Jobspec) -> list[Any]:
    """Return what a :class:`JobspecReader` needs, for JSON."""
    commands = [task["command"] for task in jobspec.data["tasks"]]
    return [None if parts.same else parts.rest, commands, parts.environment, parts.own]


class JobspecReader:
    """The receiver's memory of the last jobspec."""

    def __init__(self) -> None:
        self._rest: dict[str, Any] = {}
        self._environment: dict[str, str] = {}

    def read(self, packed: list[Any]) -> Jobspec:
        """Return the jobspec that `pack_jobspec` packed."""
        rest, commands, environment, own = packed
        if rest is not None:
            self._rest = json.loads(rest)
        if environment is not None:
            self._environment = environment
        data = self._rest
        tasks = [{**task, "command": command} for task, command in zip(data["tasks"], commands, strict=True)]
        jobspec = Jobspec({**data, "tasks": tasks})
        if "environment" not in jobspec.system:
            return jobspec
        return jobspec.with_system(environment={**self._environment, **own} if own else self._environment)
