"""What Parsl does around the command of a bash app, step by step, without importing Parsl.

A warm worker runs small bash apps with :func:`run`; `executor.bash_apps` takes single steps
where the command is a job of its own. The outcome is Parsl's in every case: its exceptions are imported
when one is raised, and only then. One thing is better than there: a walltime ends the command and all
that it has started.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import IO, Any

BASH = "/bin/bash"

KILL_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for a command that has exceeded its walltime."""

_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores these; a command expects them as they were."""


def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> int:
    """Run a bash app whose command `function` returns; return 0, or raise what Parsl would."""
    name = name_of(function)
    command = compose(function, args, kwargs)
    streams: list[IO[str] | None] = []
    try:
        for which in ("stdout", "stderr"):
            spec = kwargs.get(which)
            streams.append(None if spec is None else open_stream(which, spec))
        if streams[1] is not None:
            write_header(streams[1], command)
        walltime = kwargs.get("walltime")
        try:
            status = _execute(command, streams, walltime)
        except Exception as error:
            raise caught(name, error) from error
        if status is None:
            raise told(timed_out(name, walltime), kwargs)
        if status != 0:
            raise told(exit_failure(name, status), kwargs)
    finally:
        for stream in streams:
            if stream is not None:
                stream.close()
    check_outputs(name, kwargs.get("outputs", ()), os.path.exists)
    return status


# -- the steps ----------------------------------------------------------------------------------------


def name_of(function: Callable[..., Any]) -> str:
    """The name of a bash app, for errors."""
    return getattr(function, "__name__", "bash_app")


def compose(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Call the user's function for the command.

    Raises
    ------
    parsl.app.errors.AppBadFormatting, parsl.app.errors.BashAppNoReturn, ValueError
        In the cases in which Parsl raises them; and whatever else the function raises.
    """
    try:
        command = function(*args, **kwargs)
    except AttributeError as error:
        from parsl.app.errors import BashAppNoReturn

        raise BashAppNoReturn(
            f"Bash app '{name_of(function)}' did not return a value, or returned None - "
            f"with this exception: {error}"
        ) from error
    except IndexError as error:
        from parsl.app.errors import AppBadFormatting

        raise AppBadFormatting(
            f"App formatting failed for app '{name_of(function)}' with IndexError: {error}"
        ) from error
    if not isinstance(command, str):
        raise ValueError(f"Expected a str for bash_app commandline, got {type(command)}")
    return command


def stream_place(which: str, spec: Any) -> tuple[str, str]:
    """Return the path and the mode that a ``stdout`` or ``stderr`` argument means."""
    if isinstance(spec, str):
        return spec, "a+"
    files = sys.modules.get("parsl.data_provider.files")
    if files is not None and isinstance(spec, files.File):
        return spec.filepath, "w"
    if isinstance(spec, os.PathLike):
        return os.fsdecode(spec), "a+"
    if type(spec) is tuple and list(map(type, spec)) == [str, str]:
        return spec
    from parsl.utils import get_std_fname_mode  # says what is wrong with it

    path, mode = get_std_fname_mode(which, spec)
    return path, mode


def open_stream(which: str, spec: Any, directory: str = "") -> IO[str]:
    """Open what a ``stdout`` or ``stderr`` argument names, and make its directory.

    Parameters
    ----------
    directory : str
        What a relative path is relative to; "" for the directory of this process.

    Raises
    ------
    parsl.app.errors.BadStdStreamFile
    """
    path, mode = stream_place(which, spec)
    try:
        full = os.path.join(directory, path)
        if os.path.dirname(full):
            os.makedirs(os.path.dirname(full), exist_ok=True)
        return open(full, mode)
    except Exception as error:
        from parsl.app.errors import BadStdStreamFile

        raise BadStdStreamFile(path) from error


def write_header(stderr: IO[str], command: str) -> None:
    """Begin a standard error with the command, as Parsl does."""
    stderr.write(f"--> executable follows <--\n{command}\n--> end executable <--\n")
    stderr.flush()


def check_outputs(name: str, outputs: Sequence[Any], exists: Callable[[str], bool]) -> None:
    """Raise parsl.app.errors.MissingOutputs if a file of `outputs` does not exist."""
    missing = [output for output in outputs if not exists(output.filepath)]
    if missing:
        from parsl.app.errors import MissingOutputs

        raise MissingOutputs(f"Missing outputs from app {name}", missing)


def timed_out(name: str, walltime: Any) -> Exception:
    """What Parsl raises for a command that took longer than its walltime."""
    from parsl.app.errors import AppTimeout

    return AppTimeout(f"App {name} exceeded walltime: {walltime} seconds")


def exit_failure(name: str, status: int) -> Exception:
    """What Parsl raises for a command that failed: its exit code, or minus the signal's number."""
    from parsl.app.errors import BashExitFailure

    return BashExitFailure(name, status)


def caught(name: str, error: Exception) -> Exception:
    """What Parsl raises for a command that could not be run at all."""
    from parsl.app.errors import AppException

    return AppException(f"App {name} caught exception", error)


def told(error: Exception, kwargs: Mapping[str, Any]) -> Exception:
    """Note on an error where the output of its command is."""
    places = [
        f"{which} in {stream_place(which, kwargs[which])[0]}"
        for which in ("stdout", "stderr")
        if kwargs.get(which) is not None
    ]
    if places:
        from parsl_flux_bulk.errors import add_note

        add_note(error, ", ".join(places))
    return error


# -- the command --------------------------------------------------------------------------------------


def _execute(command: str, streams: Sequence[IO[str] | None], walltime: float | None) -> int | None:
    """Run a command; return its status as `subprocess` would, or None if its walltime ended it."""
    targets = [
        (os.POSIX_SPAWN_DUP2, stream.fileno(), number)
        for number, stream in enumerate(streams, 1)
        if stream is not None
    ]
    # The kernel's clock for processes is too coarse to tell what was there just before.
    before = frozenset() if walltime is None else frozenset(_members(0))
    began = time.monotonic()
    pid = os.posix_spawn(
        BASH, [BASH, "-c", command], os.environ, file_actions=targets, setsigdef=_DEFAULT_SIGNALS
    )
    try:
        if walltime is None or _ends_within(pid, walltime - (time.monotonic() - began)):
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        _end_all(pid, before)
        raise
    _end_all(pid, before)
    return None


def _ends_within(pid: int, timeout: float) -> bool:
    """Wait for the end of a child of ours, which stays a zombie; return whether it came in time."""
    deadline = time.monotonic() + timeout
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # Python or Linux is older than that
        return _polled(pid, deadline)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            # Rounded up, since a poll that ends early is only repeated; bounded, as poll(2) is.
            left = min(max(0.0, deadline - time.monotonic()), 86400.0)
            if poll.poll(int(left * 1000) + (left > 0)):
                return True
            if time.monotonic() >= deadline:
                return False
    finally:
        os.close(descriptor)


def _polled(pid: int, deadline: float) -> bool:
    pause = 0.0005
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        pause = min(pause * 2, left, 0.05)
        time.sleep(pause)
    return True


def _end_all(pid: int, before: Collection[int]) -> None:
    """End a child of ours and everything that it has started, also what has outlived its parent.

    A command is not made a process group of its own, because it has to end with the worker, however that
    ends, and the worker's group is how. So what belongs to the command is what is in that group, began
    no earlier than it, and was not there `before`.
    """
    try:
        since = _begun(pid)
        for member in _members(since, before):
            _kill(member, signal.SIGTERM)
        deadline = time.monotonic() + KILL_GRACE
        while (members := _members(since, before)) and time.monotonic() < deadline:
            time.sleep(0.005)
        while members:
            for member in members:
                _kill(member, signal.SIGKILL)
            time.sleep(0.001)
            members = _members(since, before)
    finally:
        _kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _members(since: int, but: Collection[int] = ()) -> list[int]:
    """The live processes of our group, but for ourselves and `but`, that began at `since` or later."""
    own, group = os.getpid(), os.getpgrp()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != own and int(entry) not in but:
            try:
                state, _, pgrp, begun = _stat(int(entry))
            except OSError:
                continue  # it has ended
            if pgrp == group and begun >= since and state not in "ZX":
                found.append(int(entry))
    return found


def _begun(pid: int) -> int:
    return _stat(pid)[3]


def _stat(pid: int) -> tuple[str, int, int, int]:
    """State, parent, process group and start time, in clock ticks, of a process; proc(5)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name, in parentheses, may hold anything.
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[19])


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it has ended, or belongs to somebody else by now
