"""Run bash apps as Parsl does, without importing Parsl.

A worker runs small bash apps with :func:`run`; `executor.bash_apps` uses the single steps where the command
is a job. Results and exceptions are Parsl's. The executor makes the exceptions; that of a command that failed
has the last lines of its standard error. Unlike in Parsl, a walltime ends the command and all processes that
it has started.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` would add to what is put back after each task
import os
import select
import sys
import time

from parsl_flux_bulk.protocol.app_failure import AppFailed, AppFailure, parsl_error
from parsl_flux_bulk.protocol.stderr_tail import TAIL_BYTES, last_lines, read_tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import IO, Any

BASH = "/bin/bash"

KILL_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for a command that exceeded its walltime."""

_DEFAULT_SIGNALS = (_signal.SIGPIPE, _signal.SIGXFSZ)
"""Python ignores these signals; commands expect the default action."""


def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> int:
    """Run a bash app, whose command `function` returns; return 0, or raise AppFailure or what Parsl would."""
    name = name_of(function)
    command = compose(function, args, kwargs)
    streams: dict[str, IO[str]] = {}
    try:
        for which in ("stdout", "stderr"):
            if (spec := kwargs.get(which)) is not None:
                streams[which] = open_stream(spec)
        own_stderr = "stderr" in streams
        if own_stderr:
            write_header(streams["stderr"], command)
            start = os.fstat(streams["stderr"].fileno()).st_size
        walltime = kwargs.get("walltime")
        try:
            status, stderr = _execute(command, streams, walltime)
        except Exception as error:
            raise app_exception(name, error) from error
        if status != 0:
            targets = {which: stream_target(kwargs[which])[0] for which in streams}
            if own_stderr:
                stderr = read_tail(targets["stderr"], start)
            places = ", ".join(f"{which} in {path}" for which, path in targets.items())
            raise AppFailure(AppFailed(status, walltime, places, stderr))
    finally:
        for stream in streams.values():
            stream.close()
    check_outputs(name, kwargs.get("outputs", ()), os.path.exists)
    return status


# -- the steps ----------------------------------------------------------------------------------------


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a bash app, for errors."""
    return getattr(function, "__name__", "bash_app")


def compose(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Call the user's function to get the command.

    Raises
    ------
    parsl.app.errors.AppBadFormatting, parsl.app.errors.BashAppNoReturn, ValueError
        In the same cases as in Parsl; other exceptions of the function pass through.
    """
    try:
        command = function(*args, **kwargs)
    except AttributeError as error:
        raise parsl_error(
            "BashAppNoReturn",
            f"Bash app '{name_of(function)}' did not return a value, or returned None - "
            f"with this exception: {error}",
        ) from error
    except IndexError as error:
        raise parsl_error(
            "AppBadFormatting",
            f"App formatting failed for app '{name_of(function)}' with IndexError: {error}",
        ) from error
    if not isinstance(command, str):
        raise ValueError(f"Expected a str for bash_app commandline, got {type(command)}")
    return command


def stream_target(spec: Any) -> tuple[str, str]:
    """Return the path and the mode of a ``stdout`` or ``stderr`` argument."""
    if isinstance(spec, str):
        return spec, "a+"
    files = sys.modules.get("parsl.data_provider.files")
    if files is not None and isinstance(spec, files.File):
        return spec.filepath, "w"
    if not isinstance(spec, tuple):
        return os.fsdecode(spec), "a+"
    path, mode = spec
    return os.fsdecode(path), mode


def open_stream(spec: Any, directory: str = "") -> IO[str]:
    """Open the file of a ``stdout`` or ``stderr`` argument, and create its directory.

    Parameters
    ----------
    directory : str
        Base of a relative path; "" for the working directory.

    Raises
    ------
    parsl.app.errors.BadStdStreamFile
    """
    path, mode = stream_target(spec)
    try:
        full = os.path.join(directory, path)
        if os.path.dirname(full):
            os.makedirs(os.path.dirname(full), exist_ok=True)
        return open(full, mode)
    except Exception as error:
        raise parsl_error("BadStdStreamFile", path) from error


def write_header(stderr: IO[str], command: str) -> None:
    """Write the command at the beginning of a standard error file, as Parsl does."""
    stderr.write(f"--> executable follows <--\n{command}\n--> end executable <--\n")
    stderr.flush()


def check_outputs(name: str, outputs: Sequence[Any], exists: Callable[[str], bool]) -> None:
    """Raise parsl.app.errors.MissingOutputs if a file of `outputs` does not exist."""
    missing = [output for output in outputs if not exists(output.filepath)]
    if missing:
        raise parsl_error("MissingOutputs", f"Missing outputs from app {name}", missing)


def app_timeout(name: str, walltime: Any) -> Exception:
    """Return Parsl's exception for a command that exceeded its walltime."""
    return parsl_error("AppTimeout", f"App {name} exceeded walltime: {walltime} seconds")


def exit_failure(name: str, status: int) -> Exception:
    """Return Parsl's exception for a failed command; `status` is negative for a signal."""
    return parsl_error("BashExitFailure", name, status)


def app_exception(name: str, error: Exception) -> Exception:
    """Return Parsl's exception for a command that could not be run."""
    return parsl_error("AppException", f"App {name} caught exception", error)


# -- the command --------------------------------------------------------------------------------------


def _execute(command: str, streams: Mapping[str, IO[str]], walltime: float | None) -> tuple[int | None, str]:
    """Run a command; return its status as `subprocess` would, or None after a timeout, and its last lines."""
    numbers = {"stdout": 1, "stderr": 2}
    targets = [(os.POSIX_SPAWN_DUP2, stream.fileno(), numbers[which]) for which, stream in streams.items()]
    # Start times of processes are too coarse to exclude those that started just before.
    before = frozenset() if walltime is None else frozenset(_group_members(0))
    deadline = None if walltime is None else time.monotonic() + walltime
    relay = None
    if "stderr" not in streams:
        relay = _Relay()
        targets.append((os.POSIX_SPAWN_DUP2, relay.write_end, 2))
    try:
        pid = os.posix_spawn(
            BASH,
            [BASH, "-c", command],
            os.environb._data,  # type: ignore[attr-defined]  # noqa: SLF001 (a dictionary takes 25 us less)
            file_actions=targets,
            setsigdef=_DEFAULT_SIGNALS,
        )
        try:
            if relay is not None:
                relay.start()
            exits = _exits(pid, deadline, relay)
        except BaseException:
            _kill_command(pid, before)
            raise
        status = None
        if exits:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            _kill_command(pid, before)
        return status, relay.finish() if relay is not None else ""
    finally:
        if relay is not None:
            relay.close()


class _Relay:
    """Passes the standard error of a command on to that of this process, and keeps the last lines.

    Attributes
    ----------
    ended : bool
        No process has the other end any more, and all was passed on.
    """

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.ended = False
        self._tail = b""

    def start(self) -> None:
        """Leave the pipe's other end to the command."""
        os.close(self.write_end)
        self.write_end = -1

    def pass_on(self) -> None:
        """Pass on what is there; waits if nothing is."""
        data = os.read(self.read_end, 1 << 16)
        self.ended = not data
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        while data:
            try:
                data = data[os.write(2, data) :]
            except OSError:
                break  # nobody reads it

    def finish(self) -> str:
        """Return the last lines; a background process that the command left keeps its standard error."""
        poll = select.poll()
        poll.register(self.read_end, select.POLLIN)
        while not self.ended and poll.poll(0):
            self.pass_on()
        if not self.ended:
            os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[
                (os.POSIX_SPAWN_DUP2, self.read_end, 0), (os.POSIX_SPAWN_DUP2, 2, 1)
            ])  # fmt: skip
        return last_lines(self._tail.decode(errors="replace")) if self._tail else ""

    def close(self) -> None:
        for end in (self.read_end, self.write_end):
            if end >= 0:
                os.close(end)


def _exits(pid: int, deadline: float | None, relay: _Relay | None) -> bool:
    """Wait for a child process to exit, without reaping it; return whether it did before the deadline."""
    if deadline is None and relay is None:
        return True  # the caller waits
    poll = select.poll()
    try:
        process = os.pidfd_open(pid)
        poll.register(process, select.POLLIN)
    except (AttributeError, OSError):  # not available in this Python or Linux
        process = -1
    if relay is not None:
        poll.register(relay.read_end, select.POLLIN)
    pause = 0.0005
    try:
        while True:
            # Rounded up, so that the loop does not spin; at most a day, since poll(2) takes an int.
            left = 86400.0 if deadline is None else min(max(0.0, deadline - time.monotonic()), 86400.0)
            if process < 0:
                pause = min(pause * 2, 0.05)
                left = min(left, pause)
            ready = dict(poll.poll(int(left * 1000) + (left > 0)))
            if relay is not None and relay.read_end in ready:
                relay.pass_on()
                if relay.ended:
                    if deadline is None:
                        return True  # it exits now, and the caller waits
                    poll.unregister(relay.read_end)
                    relay = None
            if process < 0:
                exited = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            else:
                exited = process in ready
            if exited:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
    finally:
        if process >= 0:
            os.close(process)


def _kill_command(pid: int, before: Collection[int]) -> None:
    """Kill a command and all processes that it has started, including orphans.

    The command stays in the worker's process group, so that it is killed with the worker. Its processes are
    those members of the group that started no earlier than the command and did not exist `before`.
    """
    try:
        _, _, since = _stat(pid)
        for member in _group_members(since, before):
            _kill(member, _signal.SIGTERM)
        deadline = time.monotonic() + KILL_GRACE
        while (members := _group_members(since, before)) and time.monotonic() < deadline:
            time.sleep(0.005)
        while members:
            for member in members:
                _kill(member, _signal.SIGKILL)
            time.sleep(0.001)
            members = _group_members(since, before)
    finally:
        _kill(pid, _signal.SIGKILL)
        os.waitpid(pid, 0)


def _group_members(since: int, excluded: Collection[int] = ()) -> list[int]:
    """Return the other live processes of this process group that started at `since` or later."""
    own, group = os.getpid(), os.getpgrp()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != own and int(entry) not in excluded:
            try:
                state, pgrp, started = _stat(int(entry))
            except OSError:
                continue  # it has ended
            if pgrp == group and started >= since and state not in "ZX":
                found.append(int(entry))
    return found


def _stat(pid: int) -> tuple[str, int, int]:
    """Return state, process group and start time (clock ticks) of a process; see proc(5)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name, in parentheses, may contain any character.
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[2]), int(fields[19])


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # the process has ended, or the pid is another user's by now
