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
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_prctl = ctypes.CDLL(None).prctl


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies; exit if the parent has died already.

    The parent's thread counts that started this process, so a parent must not fork in a thread that ends
    before the process does.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


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
    read_end, write_end = os.pipe()
    name = f"guard-{os.getpid()}".encode()  # as ps(1) shows it
    child = os.fork()
    if not child:
        # Forked twice, so that user code finds no child that it did not start.
        if not os.fork():
            _prctl(_PR_SET_NAME, name, 0, 0, 0)
            _guard(read_end, groups)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(read_end)
    return write_end


def _guard(pipe: int, groups: Callable[[], Iterable[int]]) -> None:
    try:
        os.setsid()
        # A signal for the whole job is not meant for the guard, which ends by itself.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Above all the channel and the job's output, which others expect to close.
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
        os.closerange(0, pipe)
        os.closerange(pipe + 1, limit)
        if not os.read(pipe, 1):
            for group in groups():
                try:
                    os.killpg(group, signal.SIGKILL)
                except OSError:
                    pass  # it has ended
    finally:
        os._exit(0)
