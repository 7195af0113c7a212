"""Records of a task and of how it ended; no behaviour belongs here.

A :class:`Task` is made by the executor, moved about by the scheduler, and ended once, with one of
the outcomes below.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from parsl_flux_bulk.instances.base import JobResult

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parsl_flux_bulk.jobspec.resources import Resources


class TaskFunction(Protocol):
    """A serialised function, as far as the scheduler knows it."""

    @property
    def function_id(self) -> int:
        """Names it to the workers."""


class TaskState(enum.IntEnum):
    """Where a task is. The scheduler relies on PENDING alone being false."""

    PENDING = 0
    """Held by the scheduler."""
    ASSIGNED = 1
    """With a worker, or in a task job: it runs, or may do so at any moment."""
    DONE = 2
    """Ended, with an outcome."""


class Task:
    """One app invocation.

    Attributes
    ----------
    task_id : int
        Positive, larger than that of every task before it.
    resources : Resources
    function : TaskFunction
    call : bytes
        The serialised arguments.
    future : Future
        The scheduler never touches it.
    bare : bool
        The call is the command of its job: no process of ours runs it, the job's end is its outcome.
    state : TaskState
    place : Worker, TaskJob or None
        Who has it, while it is GIVEN; a task job has it from the start.
    canceled : bool
        Somebody wants it to end without a result.
    """

    __slots__ = (
        "__weakref__",
        "bare",
        "call",
        "canceled",
        "function",
        "future",
        "place",
        "resources",
        "state",
        "task_id",
    )

    def __init__(
        self,
        task_id: int,
        resources: Resources,
        function: TaskFunction,
        call: bytes,
        future: Future[Any] | None,
        *,
        bare: bool = False,
    ) -> None:
        self.task_id = task_id
        self.resources = resources
        self.function = function
        self.call = call
        self.future = future
        self.bare = bare
        self.state: int = TaskState.PENDING
        self.place: Any = None
        self.canceled = False

    def __repr__(self) -> str:
        return f"<Task {self.task_id} {TaskState(self.state).name.lower()}>"


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
class RankFailed:
    """One rank of a task job failed: its serialised outcome, which tells how."""

    rank: int
    body: bytes


@dataclass(frozen=True, slots=True)
class BareJobEnded:
    """How the job of a bare task ended, well or not."""

    job: Any
    result: JobResult


class Canceled:
    """Ended because it was canceled, before it had an outcome. There is one of it, `CANCELED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "CANCELED"


CANCELED = Canceled()

Outcome: TypeAlias = bytes | RankFailed | BareJobEnded | Loss | Canceled
"""What a task ends with; bytes are what the task itself returned or raised, serialised."""
