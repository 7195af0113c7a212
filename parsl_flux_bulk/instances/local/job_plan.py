"""How the embedded instance's server is to run one job. Only plain values, which travel as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Stream(NamedTuple):
    """A file that the standard output or error of a job's tasks goes to."""

    path: str
    append: bool = False
    label: bool = False


@dataclass(frozen=True)
class JobPlan:
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
        None: the instance keeps the output. In the server a list of the fields, as JSON has it.
    rlimits : dict
        Soft limits by lower-case name; -1 is unlimited.
    env_expand : dict
        Variables whose mustache templates are expanded for each task.
    exit_timeout : float or None
        Seconds that the other tasks have after the first one ended.
    signal : list or None
        Signal number, and how many seconds before `duration` ends the signal is sent.
    """

    command: list[str]
    environment: dict[str, str]
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
    signal: list[float] | None
