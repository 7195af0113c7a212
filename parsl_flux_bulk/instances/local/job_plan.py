"""How the embedded instance's server is to run one job. Only plain values, which travel as JSON.

Of a job, the client sends what differs from the job before (`PlanReader`): its command, and little more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple


class Stream(NamedTuple):
    """A file that the standard output or error of a job's tasks goes to."""

    path: str
    append: bool = False
    label: bool = False


class JobPlan(NamedTuple):
    """How to run one job.

    Attributes
    ----------
    cores, gpus : int
        Totals of the job; with `exclusive` the job gets all that the machine has.
    ntasks : int
        Processes to start, or 0: `tasks_per_core` for each core that the job gets.
    duration : float
        Seconds; 0 is no limit.
    affinity, gpu_affinity : str
        ``on``: each task may use all cores (GPUs) of the job; ``per-task``: a share; ``off``.
    stdout, stderr : Stream or None
        None: the instance keeps the output.
    rlimits : dict
        Soft limits by lower-case name; -1 is unlimited.
    env_expand : dict
        Variables whose mustache templates are expanded for each task.
    exit_timeout : float or None
        Seconds that the other tasks have after the first one ended.
    pmi : bool
        Whether the tasks of a job of several find each other by PMI.
    signal : list or None
        Signal number, and how many seconds before `duration` ends the signal is sent.
    """

    command: list[str]
    cwd: str
    name: str
    urgency: int
    cores: int
    gpus: int
    exclusive: bool
    ntasks: int
    tasks_per_core: int
    duration: float
    affinity: str
    gpu_affinity: str
    stdin: str
    stdout: Stream | None
    stderr: Stream | None
    rlimits: dict[str, int]
    env_expand: dict[str, str]
    exit_timeout: float | None
    exit_on_error: bool
    pmi: bool
    signal: list[float] | None


class Environment(NamedTuple):
    """The variables of a job, encoded: those that it shares with other jobs, and its own."""

    shared: Mapping[bytes, bytes]
    own: Mapping[bytes, bytes]


class PlanReader:
    """The server's memory of the last job of a client.

    A job travels as a list: the plan (None: as the last one's, but for what follows), command, name, urgency,
    the whole environment (None: as the last that was sent whole), and the variables that differ from it.
    """

    def __init__(self) -> None:
        self._plan: JobPlan | None = None
        self._environment: dict[bytes, bytes] = {}

    def read(self, job: list[Any]) -> tuple[JobPlan, Environment]:
        """Return the plan and the environment of a job."""
        fields, command, name, urgency, environment, own = job
        if fields is not None:
            plan = JobPlan(*fields)
            self._plan = plan._replace(stdout=_stream(plan.stdout), stderr=_stream(plan.stderr))
        if environment is not None:
            self._environment = _encoded(environment)
        assert self._plan is not None  # the first job of a client has one
        plan = self._plan._replace(command=command, name=name, urgency=urgency)
        return plan, Environment(self._environment, _encoded(own))


def _stream(fields: Stream | None) -> Stream | None:
    return None if fields is None else Stream(*fields)


def _encoded(variables: Mapping[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}
