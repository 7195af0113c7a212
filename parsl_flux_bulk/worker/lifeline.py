"""End a manager or a rank, and all that it has started, when what started it or itself is killed.

::

    flux-shell ── PR_SET_PDEATHSIG ──> manager ── PR_SET_PDEATHSIG ──> worker
                                          └────── pipe ──────> guard ── SIGKILL ──> groups of the workers

The kernel kills the direct child of a process that dies. It does not kill what the child has started, such as
the command of a bash app; for this there is a *guard*: a process that sleeps until the pipe from the process
that it guards closes, kills the process groups that it is told, and exits.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WALLTIME_SIGNAL = signal.SIGVTALRM
"""Ends a rank that exceeded its walltime. Hardly a program handles it, and it leaves no core file."""

KILL_DELAY = 1.0
"""Seconds from this signal to SIGKILL, for a program that handles it."""

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_prctl = ctypes.CDLL(None).prctl


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies; exit if the parent has died already.

    The parent's thread counts that started this process, so a parent must not fork in a thread that ends
    before the process does.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, such as daemons of a task; prctl(2)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_guard(groups: Callable[[], Iterable[int]]) -> int:
    """Start a guard of this process.

    Parameters
    ----------
    groups
        Returns the process groups to kill; called in the guard after this process was killed.

    Returns
    -------
    int
        A file descriptor, which must not be inherited by other processes. The guard acts when it closes,
        unless a byte was written to it before.
    """
    return _start("guard", lambda pipe: _guard(pipe, groups))


def start_watchdog(group: int, seconds: float) -> int:
    """Start a process that kills a group, `seconds` after a byte was written to the returned descriptor.

    It exits without that when another byte is written, or when the descriptor closes.
    """
    return _start("watchdog", lambda pipe: _watch(pipe, group, seconds))


def _start(kind: str, main: Callable[[int], None]) -> int:
    read_end, write_end = os.pipe()
    name = f"{kind}-{os.getpid()}"[:15].encode()  # as ps(1) shows it
    child = os.fork()
    if not child:
        # Forked twice, so that user code finds no child that it did not start.
        if not os.fork():
            _prctl(_PR_SET_NAME, name, 0, 0, 0)
            try:
                _detach(read_end)
                main(read_end)
            finally:
                os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(read_end)
    return write_end


def _detach(pipe: int) -> None:
    os.setsid()
    # A signal for the whole job is not meant for this process, which ends by itself.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Above all the channel and the job's output, which others expect to close.
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
    os.closerange(0, pipe)
    os.closerange(pipe + 1, limit)


def _guard(pipe: int, groups: Callable[[], Iterable[int]]) -> None:
    if not os.read(pipe, 1):
        for group in groups():
            _kill_group(group, signal.SIGKILL)


def _watch(pipe: int, group: int, seconds: float) -> None:
    if os.read(pipe, 1) and not _readable(pipe, seconds):
        _kill_group(group, WALLTIME_SIGNAL)
        if not _readable(pipe, KILL_DELAY):
            _kill_group(group, signal.SIGKILL)


def _readable(pipe: int, seconds: float) -> bool:
    return bool(select.select([pipe], [], [], seconds)[0])


def _kill_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except OSError:
        pass  # it has ended
