"""Bash apps as jobs of their own: recognize, render, map the job's end to Parsl's own errors.

The command that the user's function returns becomes the jobspec's: nothing of ours, and no Python, runs on
the compute nodes. What Parsl does around a command there is done here instead, with the same outcome:
files of standard output and error are opened when the app is submitted, and outputs are looked for when its
job has ended. Both suppose a file system that is shared with the nodes.
"""

from __future__ import annotations

import errno
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parsl.app.bash import remote_side_bash_executor

from parsl_flux_bulk import jobspec
from parsl_flux_bulk.errors import TaskCrashed
from parsl_flux_bulk.executor.calls import unwrap
from parsl_flux_bulk.instances.base import JobResult, JobStatus
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.pipeline.job_errors import error_of
from parsl_flux_bulk.protocol.notes import add_note
from parsl_flux_bulk.worker import bash_runner

MAX_COMMAND_BYTES = 128 * 1024 - 1
"""Linux takes no longer argument; execve(2)."""


def recognize(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the user's function if `function` is what Parsl makes of a bash app, and else None.

    With monitoring, or with data staging inside the task, Parsl wraps more around it: that has to run where
    the command runs, so such an app is none that could be a bare job.
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


def light(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a worker runs in place of `function`: the same, but without importing all of Parsl."""
    app = recognize(function)
    if app is None:
        return function
    runner = functools.partial(bash_runner.run, app)
    runner.__name__ = bash_runner.name_of(app)  # type: ignore[attr-defined]
    return runner


class BashCommand:
    """A rendered bash app: stands where other tasks have their function.

    Attributes
    ----------
    name : str
        The app's.
    text : str
        For ``bash -c``.
    directory : str
        Where it runs; may be a template of Flux's.
    stdout, stderr : str or None
        Absolute paths, or such as Flux fills in; None where the app leaves it to us.
    outputs : sequence of parsl.File
        That it promises to make.
    walltime : float or None
        Seconds; as the user wrote it.
    """

    __slots__ = ("directory", "name", "outputs", "stderr", "stdout", "text", "walltime")

    function_id = 0

    def __init__(
        self, name: str, text: str, directory: str, kwargs: Mapping[str, Any], walltime: float | None
    ) -> None:
        self.name = name
        self.text = text
        self.directory = directory
        self.outputs: Sequence[Any] = kwargs.get("outputs", ())
        self.walltime = walltime
        self.stdout: str | None = None
        self.stderr: str | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """What each task of the job runs.

        The job's duration begins with its shell, and Flux does not watch it closely: timeout(1) does.
        """
        bash = (bash_runner.BASH, "-c", self.text)
        if self.walltime is None:
            return bash
        return ("timeout", f"{max(self.walltime, 0.001):f}", *bash)

    def outcome(
        self, result: JobResult, job: str, places: Sequence[str]
    ) -> tuple[int | None, BaseException | None]:
        """Say what the app's future ends with.

        Parameters
        ----------
        job : str
            The job as a person knows it.
        places : sequence of str
            Where its output is, for the error's notes.
        """
        if result.ok:
            try:
                bash_runner.check_outputs(self.name, self.outputs, self._exists)
            except Exception as error:
                return None, _noted(error, job, places)
            return 0, None
        return None, _noted(self._error(result, job), job, places, result.stderr)

    def _error(self, result: JobResult, job: str) -> BaseException:
        if result.status is JobStatus.TIMEOUT and self.walltime is not None:
            return bash_runner.timed_out(self.name, self.walltime)
        ended_itself = result.status is JobStatus.FAILED and result.started and not result.exception
        if ended_itself and self.walltime is not None and result.exit_code == TIMED_OUT:
            return bash_runner.timed_out(self.name, self.walltime)
        if ended_itself and (result.signal or result.exit_code):
            # A signal as `subprocess` has it, whose return code Parsl hands on.
            return bash_runner.exit_failure(
                self.name, -result.signal if result.signal else result.exit_code or 0
            )
        error = error_of(result, f"bash_app {self.name}, job {job}" if job else f"bash_app {self.name}")
        assert error is not None
        return error

    def _exists(self, path: str) -> bool:
        path = os.path.join(self.directory, path)
        if os.path.exists(path):
            return True
        try:
            # A network file system may remember for a while that there was no such file; to open the
            # directory makes it look again.
            os.close(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY))
        except OSError:
            return False
        return os.path.exists(path)


def render(
    app: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    resources: Resources,
    cwd: str,
) -> tuple[BashCommand, Resources]:
    """Render a bash app, and open its standard output and error.

    Parameters
    ----------
    cwd : str
        Where jobs run unless `resources` says otherwise.

    Returns
    -------
    BashCommand, Resources
        The latter with the app's walltime as the job's duration.

    Raises
    ------
    Exception
        Whatever Parsl would raise in the worker, and what the user's function raises.
    """
    name = bash_runner.name_of(app)
    try:
        text = bash_runner.compose(app, args, kwargs)
    except SystemExit as error:
        # Here it would end the user's script.
        raise TaskCrashed(f"bash_app {name} called sys.exit({error.code!r}) in place of returning") from error
    _check(name, text)
    walltime, resources = _limit(name, kwargs.get("walltime"), resources)
    directory = jobspec.working_directory(resources, cwd)
    command = BashCommand(name, text, directory, kwargs, walltime)
    for output in command.outputs:
        _check_place("outputs", output.filepath, directory)
    command.stdout = _open("stdout", kwargs.get("stdout"), command)
    command.stderr = _open("stderr", kwargs.get("stderr"), command)
    return command, resources


def _check(name: str, text: str) -> None:
    if "\0" in text:
        raise bash_runner.caught(name, ValueError("embedded null byte"))
    if len(os.fsencode(text)) > MAX_COMMAND_BYTES:
        raise bash_runner.caught(name, OSError(errno.E2BIG, os.strerror(errno.E2BIG), bash_runner.BASH))


TIMED_OUT = 124
"""Exit status of timeout(1)."""

START_ALLOWANCE = 1.0
"""Seconds added to a walltime for the job's duration, which begins with its shell. It ends what does not heed
timeout(1)'s SIGTERM."""


def _limit(name: str, walltime: Any, resources: Resources) -> tuple[float | None, Resources]:
    """Make the walltime the duration, unless that is shorter; return it if it is what ends the job."""
    if walltime is None:
        return None, resources
    try:
        seconds = float(walltime + 0.0)
        if math.isnan(seconds):
            raise ValueError("walltime must be a number of seconds, not nan")
    except Exception as error:
        raise bash_runner.caught(name, error) from error
    if seconds <= 0:
        raise bash_runner.timed_out(name, walltime)
    if math.isinf(seconds) or 0 < resources.duration < seconds:
        return None, resources
    return walltime, replace(resources, duration=seconds + START_ALLOWANCE)


def _open(which: str, spec: Any, command: BashCommand) -> str | None:
    """Open a stream's file as Parsl does, so that the job can append to it; return its path for the job."""
    if spec is None:
        return None
    path, _ = bash_runner.stream_place(which, spec)
    if "{{" in path:
        return path  # one file a job or a rank, which Flux names and opens
    _check_place(which, path, command.directory)
    stream = bash_runner.open_stream(which, spec, command.directory)
    assert stream is not None
    with stream:
        if which == "stderr":
            bash_runner.write_header(stream, command.text)
    return os.path.join(command.directory, path)


def _check_place(which: str, path: str, directory: str) -> None:
    if "{{" in directory and not os.path.isabs(path):
        raise ValueError(
            f"{which}: {path!r} is relative to {directory!r}, which only Flux knows; give an absolute path"
        )


def _noted(error: BaseException, job: str, places: Sequence[str], stderr: str = "") -> BaseException:
    add_note(error, ", ".join([f"job {job}", *places] if job else places))
    # error_of has told the last lines already.
    if stderr and stderr not in str(error):
        add_note(error, f"its standard error ended with:\n{stderr}")
    return error
