"""Find the processes of the embedded instance's jobs, also those that left their process group.

The server is a *subreaper*: an orphan among its descendants becomes its child (prctl(2)). Every
process of a job carries ``FLUX_JOB_TMPDIR`` in the environment it started with, a path inside the
instance's private directory, which names the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import time
from collections.abc import Collection, Container

SYS_PIDFD_OPEN = 434  # the same on every architecture that Flux runs on

END_BOUND = 10.0
"""Seconds that the server waits at most, at its own end, until all processes are dead."""

LOOK_PERIOD = 2.0
"""Seconds between two looks for adopted processes while jobs run; there is one after each job, too."""

KILLED_PERIOD = 0.05
"""Seconds until the look after one that killed some: their children, then adopted, are killed too."""

SWEEPS = 20
"""How often a sweep over all processes is repeated at most."""

_VARIABLE = b"FLUX_JOB_TMPDIR="


def job_tmpdir(directory: str, job_id: int) -> str:
    """Return a job's scratch directory, below the instance's private one."""
    return f"{directory}/job-{job_id}"


def process_handle(pid: int) -> int:
    """Return a descriptor that becomes readable when a process ends; pidfd_open(2).

    Raises
    ------
    OSError
        The process has ended, or the kernel is older than 5.3.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    # Python built on an old system lacks the function even if the kernel has it.
    descriptor: int = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_OPEN, pid, 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


class Strays:
    """The processes of jobs that this process has adopted.

    Attributes
    ----------
    found : dict
        Those that ran at the last look: pid -> job, None if that cannot be told.
    next_look : float
        When to look again, by the monotonic clock.
    """

    def __init__(self, directory: str) -> None:
        self.found: dict[int, int | None] = {}
        self.next_look = math.inf
        self._directory = directory
        self._pid = os.getpid()
        try:
            # An orphan becomes a child of the main thread.
            self._file = os.open(f"/proc/{self._pid}/task/{self._pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without CONFIG_PROC_CHILDREN
            self._file = -1

    def expect(self) -> None:
        """Look before long: a job has started."""
        self.next_look = min(self.next_look, time.monotonic() + LOOK_PERIOD)

    def look(self, tasks: Container[int], running: Collection[int]) -> None:
        """Reap those that have ended, and kill those of jobs that have ended.

        Parameters
        ----------
        tasks : container
            Children that are not strays.
        running : collection
            Jobs.
        """
        found: dict[int, int | None] = {}
        killed = False
        for pid in self._children():
            if pid in tasks or os.waitpid(pid, os.WNOHANG)[0]:
                continue
            job_id = found[pid] = self.found[pid] if pid in self.found else job_of(pid, self._directory)
            if job_id not in running and (job_id is not None or not running):
                kill(pid, signal.SIGKILL)
                killed = True
        self.found = found
        period = KILLED_PERIOD if killed else LOOK_PERIOD if found or running else math.inf
        self.next_look = time.monotonic() + period

    def _children(self) -> list[int]:
        if self._file < 0:
            return [pid for pid in _all_processes() if _parent(pid) == self._pid]
        text = b""
        while more := os.pread(self._file, 1 << 16, len(text)):
            text += more
        return [int(pid) for pid in text.split()]


def job_of(pid: int, directory: str) -> int | None:
    """Return the job that a process belongs to; None if its environment does not tell."""
    prefix = _VARIABLE + os.fsencode(job_tmpdir(directory, 0))[:-1]
    for variable in _environment(pid):
        if variable.startswith(prefix) and variable[len(prefix) :].isdigit():
            return int(variable[len(prefix) :])
    return None


def kill_all_of(directory: str) -> None:
    """SIGKILL every process of every job of an instance whose server is dead."""
    for _ in range(SWEEPS):  # a process may fork during a sweep
        found = [pid for pid in _all_processes() if job_of(pid, directory) is not None]
        for pid in found:
            kill(pid, signal.SIGKILL)
        if not found:
            return


def kill(pid: int, signum: int) -> None:
    """Send a signal to a process, if it has not ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def kill_group(pid: int, signum: int) -> None:
    """Send a signal to a process group, if it has not ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return None
