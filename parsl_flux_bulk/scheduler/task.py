"""Records of a task and of how it ended; no behavior belongs here.

A task is a call (`CallTask`) or a command (`CommandTask`). The executor creates it, the scheduler moves it,
and it ends once, with one of the outcomes below.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from parsl_flux_bulk.instances.base import JobResult
from parsl_flux_bulk.protocol.states import Stateful
from parsl_flux_bulk.scheduler.states import TaskState

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parsl_flux_bulk.jobspec.resources import Resources


class Function:
    """A serialized function.

    Attributes
    ----------
    function_id : int
        Identifies the function to the workers; positive, never reused.
    name : str
    payload : bytes
    """

    __slots__ = ("function_id", "name", "payload")

    def __init__(self, function_id: int, name: str, payload: bytes) -> None:
        self.function_id = function_id
        self.name = name
        self.payload = payload


@dataclass(frozen=True, slots=True)
class Command:
    """A rendered bash app, to be the command of a job.

    Attributes
    ----------
    name : str
        Name of the app.
    arguments : tuple of str
        What each process of the job executes.
    directory : str
        Working directory; may be a mustache template that Flux fills in.
    stdout, stderr : str or None
        Absolute paths, or mustache templates; None for a file in the executor's output directory.
    outputs : sequence of parsl.File
        Files that must exist when the job has ended.
    walltime : float or None
        Seconds, as the user wrote them; None if no walltime of the app ends the job.
    """

    name: str
    arguments: tuple[str, ...]
    directory: str
    stdout: str | None = None
    stderr: str | None = None
    outputs: Sequence[Any] = ()
    walltime: float | None = None


class _Task(Stateful):
    __slots__ = (
        "__weakref__",
        "assigned",
        "canceled",
        "future",
        "place",
        "resources",
        "state",
        "submitted",
        "task_id",
    )

    def __init__(self, task_id: int, resources: Resources, new_future: Callable[[Any], Future[Any]]) -> None:
        self.task_id = task_id
        self.resources = resources
        self.state = TaskState.PENDING
        self.place: Any = None
        self.canceled = False
        self.submitted = self.assigned = math.nan
        self.future = new_future(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id} {self.state}>"


class CallTask(_Task):
    """One invocation of a function, run by a worker or by the ranks of a task job.

    Parameters
    ----------
    new_future : callable
        Returns the future of this task, which is passed to it.

    Attributes
    ----------
    task_id : int
        Positive, larger than that of every task before it.
    resources : Resources
    future : Future
        Not used by the scheduler.
    function : Function
    call : bytes
        The serialized arguments.
    state : TaskState
    place : Worker, TaskJob or None
        The holder of the task while it is ASSIGNED. A task job holds its task from the start.
    canceled : bool
        The task is to end without a result.
    submitted, assigned : float
        Seconds, by the scheduler's clock: when the executor took it, and when a worker got it or its job was
        submitted, the last time. NaN if that is not known.
    """

    __slots__ = ("call", "function")

    def __init__(
        self,
        task_id: int,
        resources: Resources,
        new_future: Callable[[CallTask], Future[Any]],
        function: Function,
        call: bytes,
    ) -> None:
        super().__init__(task_id, resources, new_future)
        self.function = function
        self.call = call

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.name


class CommandTask(_Task):
    """One invocation of a bash app whose command is the command of the task's job.

    The end of the job is the outcome of the task. Attributes are those of `CallTask`, with `command` in
    place of `function` and `call`.
    """

    __slots__ = ("command",)

    def __init__(
        self,
        task_id: int,
        resources: Resources,
        new_future: Callable[[CommandTask], Future[Any]],
        command: Command,
    ) -> None:
        super().__init__(task_id, resources, new_future)
        self.command = command

    @property
    def name(self) -> str:
        """Name of the bash app."""
        return self.command.name


Task: TypeAlias = CallTask | CommandTask


class LossReason(enum.Enum):
    """Why a task ended without an outcome of its own."""

    CRASHED = "its process died while it ran"
    WORKER_LOST = "its worker was lost while it ran"
    MAYBE_STARTED = "its worker was lost, and it may have been running"
    JOB_ENDED = "its job ended without an outcome"
    REFUSED = "the instance refused the job"
    NO_WORKER = "no worker could be started for it"
    SHUT_DOWN = "the executor was shut down"


@dataclass(frozen=True, slots=True)
class Loss:
    """A task ended without an outcome of its own.

    Attributes
    ----------
    reason : LossReason
    exit_code, signal : int or None
        How its process, or else its job, ended.
    stderr : str
        Last lines of its standard error, if there are any.
    host : str
        Where it ran, or "" if it never did or that is not known.
    rank : int or None
        Which rank of a task job it was, if one alone was lost.
    job : WorkerJob, TaskJob or None
        The job it was in, or that could not be.
    result : JobResult or None
        How that job ended, if it has.
    """

    reason: LossReason
    exit_code: int | None = None
    signal: int | None = None
    stderr: str = ""
    host: str = ""
    rank: int | None = None
    job: Any = None
    result: JobResult | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A task failed: its serialized outcome, which tells how, and where it ran.

    Attributes
    ----------
    body : bytes
    job : WorkerJob or TaskJob
    host : str
    rank : int or None
        Which rank of a task job with several.
    """

    body: bytes
    job: Any
    host: str
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """How the job of a `CommandTask` ended, successfully or not."""

    command: Command
    job: Any
    result: JobResult


class Canceled:
    """Ended because it was canceled, before it had an outcome. There is one of it, `CANCELED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "CANCELED"


CANCELED = Canceled()

Outcome: TypeAlias = bytes | Failed | CommandEnded | Loss | Canceled
"""What a task ends with; bytes are what the task itself returned or raised, serialized."""
