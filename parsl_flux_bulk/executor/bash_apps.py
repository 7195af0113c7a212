"""Bash apps as jobs of their own: recognize, render, and translate the end of the job to Parsl's errors.

The command that the user's function returns becomes the command of the job: neither Python nor code of this
package runs on the compute nodes. What Parsl does around a command in a worker happens in this process
instead, with the same outcome: the files of standard output and error are opened when the app is submitted,
and `outputs` are checked when the job has ended. Both need a file system shared with the nodes.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parsl.app.bash import remote_side_bash_executor
from parsl.data_provider.files import File
from parsl.utils import get_std_fname_mode

from parsl_flux_bulk import jobspec
from parsl_flux_bulk.errors import TaskCrashed, add_note
from parsl_flux_bulk.executor.serialize_calls import unwrap
from parsl_flux_bulk.instances.base import JobResult, JobStatus
from parsl_flux_bulk.jobspec.duration import LONGEST, check_seconds
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.pipeline.exit_status_to_error import STDERR_HEADING, job_error
from parsl_flux_bulk.scheduler.task import Command
from parsl_flux_bulk.worker import bash_runner

MAX_COMMAND_BYTES = 128 * 1024 - 1
"""Longest single argument that Linux accepts; execve(2)."""

TIMED_OUT = 124
"""Exit status of timeout(1) when the time ran out."""

START_ALLOWANCE = 60.0
"""Seconds by which the duration of a job exceeds its app's walltime. The duration includes the start of the
job's shell, which may take long; timeout(1), which starts with the command, measures the walltime."""

KILL_AFTER = 5
"""Seconds after which timeout(1) kills a command that ignores its SIGTERM."""


def recognize(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the user's function if `function` is Parsl's wrapper of a bash app, else None.

    With monitoring, or with data staging inside the task, Parsl adds further wrappers. These must run where
    the command runs, so such an app cannot be a job of its own, and the result is None.
    """
    inner = unwrap(function)
    if (
        type(inner) is functools.partial
        and inner.func is remote_side_bash_executor
        and len(inner.args) == 1
        and not inner.keywords
    ):
        app: Callable[..., Any] = inner.args[0]
        return app
    return None


def check_keywords(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Check the arguments of a bash app that are Parsl's own.

    Raises
    ------
    ValueError
        The walltime is not a usable number of seconds.
    typeguard.TypeCheckError
        Standard output or error is neither a path nor a path and a mode; from Parsl's own check.
    """
    walltime = kwargs.get("walltime")
    streams = {which: spec for which in ("stdout", "stderr") if (spec := kwargs.get(which)) is not None}
    if (walltime is None and not streams) or recognize(function) is None:
        return
    if walltime is not None:
        check_seconds("walltime", walltime)
    for which, spec in streams.items():
        if not isinstance(spec, File):
            get_std_fname_mode(which, spec)


def without_parsl(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a worker runs in place of a bash app, so that the worker need not import Parsl."""
    app = recognize(function)
    if app is None:
        return function
    runner = functools.partial(bash_runner.run, app)
    runner.__name__ = bash_runner.name_of(app)  # type: ignore[attr-defined]
    return runner


def render(
    app: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    resources: Resources,
    cwd: str,
) -> tuple[Command, Resources]:
    """Render a bash app, and create the files of its standard output and error.

    Parameters
    ----------
    cwd : str
        Working directory of jobs for which `resources` names none.

    Returns
    -------
    Command, Resources
        The resources include the app's walltime as the duration of the job.

    Raises
    ------
    Exception
        What Parsl would raise in the worker, or what the user's function raises.
    """
    name = bash_runner.name_of(app)
    try:
        text = bash_runner.compose(app, args, kwargs)
    except SystemExit as error:
        # Unlike in a worker, SystemExit would end the user's script.
        raise TaskCrashed(f"bash_app {name} called sys.exit({error.code!r}) instead of returning") from error
    _check_text(name, text)
    walltime, resources = _limit(name, kwargs.get("walltime"), resources)
    directory = jobspec.working_directory(resources, cwd)
    outputs = kwargs.get("outputs", ())
    for output in outputs:
        _check_path("outputs", output.filepath, directory)
    command = Command(
        name,
        _arguments(text, walltime),
        directory,
        stdout=_create("stdout", kwargs.get("stdout"), directory),
        stderr=_create("stderr", kwargs.get("stderr"), directory, header=text),
        outputs=outputs,
        walltime=walltime,
    )
    return command, resources


def _check_text(name: str, text: str) -> None:
    if "\0" in text:
        raise bash_runner.app_exception(name, ValueError("embedded null byte"))
    if len(os.fsencode(text)) > MAX_COMMAND_BYTES:
        raise bash_runner.app_exception(
            name, OSError(errno.E2BIG, os.strerror(errno.E2BIG), bash_runner.BASH)
        )


def _arguments(text: str, walltime: float | None) -> tuple[str, ...]:
    bash = (bash_runner.BASH, "-c", text)
    if walltime is None:
        return bash
    # Flux checks the duration of a job only coarsely, and starts to count before the command runs.
    return ("timeout", f"--kill-after={KILL_AFTER}", f"{max(walltime, 0.001):f}", *bash)


def _limit(name: str, walltime: Any, resources: Resources) -> tuple[float | None, Resources]:
    """Return the walltime if it is what ends the job, and the resources with the duration that it implies."""
    if walltime is None:
        return None, resources
    seconds = float(walltime)
    if seconds <= 0:
        raise bash_runner.app_timeout(name, walltime)
    if 0 < resources.duration < seconds:
        return None, resources
    return walltime, replace(resources, duration=min(seconds + START_ALLOWANCE, LONGEST))


def _create(which: str, spec: Any, directory: str, header: str = "") -> str | None:
    """Open the file of a stream as Parsl does, so that the job can append to it; return its path."""
    if spec is None:
        return None
    path, _ = bash_runner.stream_target(spec)
    if "{{" in path:
        return path  # a file for each job or rank, named and opened by Flux
    _check_path(which, path, directory)
    _check_directory(directory, os.path.join(directory, path))
    with bash_runner.open_stream(spec, directory) as stream:
        if header:
            bash_runner.write_header(stream, header)
    return os.path.join(directory, path)


def _check_path(which: str, path: str, directory: str) -> None:
    if "{{" in directory and not os.path.isabs(path):
        raise ValueError(
            f"{which}: {path!r} is relative to {directory!r}, which only Flux can expand; "
            "give an absolute path"
        )


def _check_directory(directory: str, path: str) -> None:
    """Raise OSError if the working directory would have to be made for a file in it."""
    if path.startswith(directory.rstrip("/") + "/") and not os.path.isdir(directory):
        number = errno.ENOTDIR if os.path.exists(directory) else errno.ENOENT
        raise OSError(number, f"cannot enter the working directory: {os.strerror(number)}", directory)


def outcome(
    command: Command,
    task_id: int,
    result: JobResult,
    job: str,
    places: Sequence[str],
    seconds: float = 0.0,
) -> tuple[int | None, BaseException | None]:
    """Return what the future of a bash app ends with, as result and exception.

    Parameters
    ----------
    task_id : int
        The task's number, for the message of an error that is not the app's.
    result : JobResult
        How the job of the command ended.
    job : str
        The job's id as people write it.
    places : sequence of str
        Where the job's output is, for a note on the error.
    seconds : float
        Time from the job's submission to its end.
    """
    if result.ok:
        try:
            bash_runner.check_outputs(
                command.name, command.outputs, functools.partial(_exists, command.directory)
            )
        except Exception as error:
            return None, _noted(error, job, places)
        return 0, None
    return None, _noted(_error(command, task_id, result, job, seconds), job, places, result.stderr)


def _error(command: Command, task_id: int, result: JobResult, job: str, seconds: float) -> BaseException:
    exited = result.status is JobStatus.FAILED and result.started and not result.exception
    if command.walltime is not None and (
        result.status is JobStatus.TIMEOUT
        or (exited and result.exit_code == TIMED_OUT)
        or (exited and _was_killed(result) and seconds >= command.walltime + KILL_AFTER)
    ):
        return bash_runner.app_timeout(command.name, command.walltime)
    if exited and (result.signal or result.exit_code):
        # Parsl passes on the return code of `subprocess`, which is negative for a signal.
        return bash_runner.exit_failure(
            command.name, -result.signal if result.signal else result.exit_code or 0
        )
    what = f"bash_app {command.name} (task {task_id})"
    return job_error(result, f"{what}, job {job}" if job else what)


def _was_killed(result: JobResult) -> bool:
    """Whether timeout(1), or somebody else, killed the command."""
    return result.signal == signal.SIGKILL or result.exit_code == 128 + signal.SIGKILL


def _exists(directory: str, path: str) -> bool:
    path = os.path.join(directory, path)
    if os.path.exists(path):
        return True
    try:
        # A network file system may cache that the file does not exist. Opening the directory makes the
        # client ask the server again.
        os.close(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        return False
    return os.path.exists(path)


def _noted(error: BaseException, job: str, places: Sequence[str], stderr: str = "") -> BaseException:
    add_note(error, ", ".join([f"job {job}", *places] if job else places))
    # The message of a JobError ends with the standard error already.
    if stderr and stderr not in str(error):
        add_note(error, f"{STDERR_HEADING}\n{stderr}")
    return error
