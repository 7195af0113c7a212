"""Every error that this package raises or puts into a future.

::

    FluxBulkError
     ├─ InstanceError              about the place where jobs run
     │   ├─ InstanceUnavailable    it could not be reached or started; says what to do
     │   └─ InstanceLost           it went away while jobs were outstanding
     ├─ ExecutorClosed             submit after shutdown
     ├─ JobspecError               a jobspec is not valid; says where in it, and why
     ├─ JobError                   a job ended otherwise than with exit status 0
     │   ├─ JobRefused             the instance would not take it
     │   ├─ JobFailed              exit status, signal or a fatal job exception
     │   ├─ JobCanceled
     │   └─ JobTimeout             its duration ran out
     └─ TaskError                  a task ended without an outcome of its own
         ├─ TaskCrashed            its process died while it was running
         │   └─ WorkerLost         its worker or node was lost while it was running
         │       └─ BlockLost      the whole block that it ran in was lost
         ├─ NotSerializable        a call, result or exception cannot travel
         └─ RemoteError            an exception of the task that cannot be rebuilt here

An exception that a task raises itself is none of these: it reaches the future as it was raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl_flux_bulk.instances.base import JobResult


class FluxBulkError(Exception):
    """Base of all errors of this package."""

    def __reduce__(self) -> Any:
        # Parsl pickles exceptions (memoization, monitoring); the default rebuilds by calling the
        # class with ``args``, which is wrong for every subclass with another signature.
        return (rebuild, (type(self), self.args, self.__dict__))


def rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Rebuild an exception without calling its ``__init__``."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InstanceError(FluxBulkError):
    """Something about the instance, not about one job."""


class InstanceUnavailable(InstanceError):
    """The instance could not be reached or started."""


class InstanceLost(InstanceError):
    """The instance went away; every outstanding job of it ends with this error."""


class ExecutorClosed(FluxBulkError, RuntimeError):
    """Something was submitted after shutdown."""


class JobspecError(FluxBulkError, ValueError):
    """A jobspec is not valid.

    Attributes
    ----------
    where : str
        Path inside the jobspec (``tasks[0].command``), or line and column of a JSON error.
    reason : str
        What was wrong and what would be right.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.where = where
        self.reason = reason


class JobError(FluxBulkError):
    """A job did not end with exit status 0.

    Attributes
    ----------
    result : JobResult
        How it ended.
    """

    def __init__(self, message: str, result: JobResult) -> None:
        super().__init__(message)
        self.result = result


class JobRefused(JobError):
    """The instance would not take the job, or cannot ever satisfy its resource request."""


class JobFailed(JobError):
    """Non-zero exit status, a signal, or a fatal job exception."""


class JobCanceled(JobError):
    """The job was cancelled."""


class JobTimeout(JobError):
    """The job's duration ran out."""


class TaskError(FluxBulkError):
    """A task ended without an outcome of its own."""


class TaskCrashed(TaskError):
    """The process that ran a task ended before the task did.

    Attributes
    ----------
    job : str
        Name of the job, as the instance writes it.
    host : str
        Where it ran, as far as is known.
    exit_code, signal : int or None
        How the process ended: one of the two, or neither where it is not known.
    stderr : str
        Last lines of its standard error, if there were any.
    """

    def __init__(
        self,
        message: str,
        *,
        job: str = "",
        host: str = "",
        exit_code: int | None = None,
        signal: int | None = None,
        stderr: str = "",
    ) -> None:
        super().__init__(message)
        self.job = job
        self.host = host
        self.exit_code = exit_code
        self.signal = signal
        self.stderr = stderr


class WorkerLost(TaskCrashed):
    """The worker, or the whole node, that ran a task was lost."""


class BlockLost(WorkerLost):
    """The block, an allocation with the instance in it, that ran a task was lost."""


class NotSerializable(TaskError):
    """A call, a result or an exception cannot be serialized; says which, and why."""


class RemoteError(TaskError):
    """An exception that a task raised cannot be rebuilt here.

    Attributes
    ----------
    type_name : str
        The exception's qualified class name.
    traceback : str
        Its traceback, as text.
    """

    def __init__(self, message: str, *, type_name: str, traceback: str) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback = traceback


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception (PEP 678); Python 3.10 keeps the note but does not show it."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        setattr(error, "__notes__", [*getattr(error, "__notes__", []), note])  # noqa: B010
