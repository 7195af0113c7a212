"""Every error that this package raises or puts into a future.

::

    FluxBulkError
     ├─ InstanceError              the place where jobs run; a BrokenExecutor of concurrent.futures
     │   ├─ InstanceUnavailable    could not be reached or started; says what to do
     │   └─ InstanceLost           was lost while jobs were outstanding
     ├─ InitializerFailed          the initializer raised in a worker; a BrokenExecutor
 ├─ ExecutorClosed             submit after shutdown
     ├─ JobspecError               a jobspec is not valid; says where in it, and why
     ├─ TraceError                 a trace file is missing, or is not one
     ├─ OutputUnavailable          the output of a job is not there (any more); says what to do
     ├─ JobError                   a job ended, but not with exit status 0
     │   ├─ JobRefused             the instance rejected the job
     │   ├─ JobFailed              exit status, signal or a fatal job exception
     │   ├─ JobCanceled
     │   └─ JobTimeout             the duration of the job ran out
     └─ TaskError                  a task ended without an outcome of its own
         ├─ TaskCrashed            the process of the task died while the task was running
         │   └─ WorkerLost         the worker or node was lost while the task was running
         │       └─ BlockLost      the whole block was lost
         ├─ NotSerializable        a call, result or exception cannot be serialized
         └─ RemoteError            an exception of the task that cannot be rebuilt in this process

An exception that a task raises reaches the future unchanged.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import Any


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


class InstanceError(FluxBulkError, BrokenExecutor):
    """An error of the instance, not of one job."""


class InstanceUnavailable(InstanceError):
    """The instance could not be reached or started."""


class InstanceLost(InstanceError):
    """The instance was lost; all its outstanding jobs end with this error."""


class InitializerFailed(FluxBulkError, BrokenExecutor):
    """The initializer raised an exception, the cause of this one; all tasks end with this error."""


class ExecutorClosed(FluxBulkError, RuntimeError):
    """A task or job was submitted after shutdown, or was outstanding at shutdown."""


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


class OutputUnavailable(FluxBulkError):
    """The instance does not have the output of a job, which is different from a job that printed nothing."""


class JobError(FluxBulkError):
    """A job did not end with exit status 0.

    Attributes
    ----------
    result : JobResult
        How the job ended: an `instances.base.JobResult`.
    """

    # Any: this module is below all others, and imports none of them.
    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class JobRefused(JobError):
    """The instance rejected the job, or can never satisfy its resource request."""


class JobFailed(JobError):
    """Non-zero exit status, a signal, or a fatal job exception."""


class JobCanceled(JobError):
    """The job was canceled."""


class JobTimeout(JobError):
    """The duration of the job ran out."""


class TaskError(FluxBulkError):
    """A task ended without an outcome of its own."""


class TaskCrashed(TaskError):
    """The process that ran a task ended before the task did.

    Attributes
    ----------
    job : str
        Name of the job, as the instance writes it.
    host : str
        Where the task ran; "" if that is not known.
    exit_code, signal : int or None
        How the process ended: one of the two, or neither if that is not known.
    stderr : str
        Last lines of the standard error of the process or job.
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
    """The block that ran a task, an allocation with an instance, was lost."""


class TraceError(FluxBulkError):
    """A trace file is missing, or a file is not one; the message says what would be right."""


class NotSerializable(TaskError):
    """A call, a result or an exception cannot be serialized; the message says which, and why."""


class RemoteError(TaskError):
    """An exception that a task raised cannot be rebuilt in this process.

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
