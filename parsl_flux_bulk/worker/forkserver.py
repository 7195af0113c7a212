"""How a pool's children begin and end, as processes: forked, killed, reaped."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time

from parsl_flux_bulk.worker.worker_process import Cells, WorkerProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parsl_flux_bulk.worker.affinity import Binding


class StartedWorker:
    """A child, and the pool's ends of what connects them.

    Attributes
    ----------
    pair : two sockets
        The pool's end of the child's tasks, and the child's, which the pool keeps open too.
    outcomes, stderr : int
        File descriptors to read from.
    """

    __slots__ = ("child", "outcomes", "pair", "pid", "stderr")

    def __init__(
        self, child: WorkerProcess, pair: tuple[socket.socket, socket.socket], outcomes: int, stderr: int
    ) -> None:
        self.child = child
        self.pair = pair
        self.outcomes = outcomes
        self.stderr = stderr
        self.pid = 0


class Ended:
    """How a child ended: by an exit code or by a signal."""

    __slots__ = ("exit_code", "pid", "signal")

    def __init__(self, pid: int, exit_code: int | None, signal: int | None) -> None:
        self.pid = pid
        self.exit_code = exit_code
        self.signal = signal


class Forkserver:
    """Forks children and hears of their ends.

    Parameters
    ----------
    shares
        What each slot may use.

    Attributes
    ----------
    wake : int
        File descriptor that is readable when a child may have ended.
    """

    def __init__(self, shares: Sequence[Binding]) -> None:
        self.cells = Cells(len(shares))
        self._shares = shares
        self._alive: set[int] = set()
        self.wake, wake = os.pipe()
        for end in (self.wake, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def bear(
        self, slots: Sequence[int], limit: int | None, before: Callable[[], None] | None
    ) -> list[StartedWorker]:
        """Fork a child for each of the slots.

        Nothing else happens between two forks: every page of memory that is touched after one is copied.

        Parameters
        ----------
        limit
            Of tasks, for each.
        before
            To be called in each child first.

        Raises
        ------
        OSError
            There is no memory, process or file descriptor left.
        """
        born = [self._conceive(slot, limit) for slot in slots]
        last_descriptor = max(map(int, os.listdir("/proc/self/fd")))
        gc.freeze()  # the collector would touch every page
        for newborn in born:
            newborn.pid = os.fork()
            if not newborn.pid:
                if before is not None:
                    before()
                newborn.child.main(last_descriptor)
        for newborn in born:
            self._alive.add(newborn.pid)
            try:
                os.setpgid(newborn.pid, newborn.pid)  # by whoever of the two comes first
            except OSError:
                pass
            for fd in newborn.child.descriptors:
                os.close(fd)
        return born

    def _conceive(self, slot: int, limit: int | None) -> StartedWorker:
        self.cells.clear(slot)
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outcomes, outcomes_of_child = os.pipe()
        stderr, stderr_of_child = os.pipe()
        descriptors = (outcomes_of_child, stderr_of_child)
        child = WorkerProcess(slot, self._shares[slot], self.cells, pair[1], descriptors, limit)
        return StartedWorker(child, pair, outcomes, stderr)

    def kill(self, pid: int) -> None:
        """SIGKILL a child, and what it has started."""
        if pid in self._alive:
            kill_group(pid)

    def ended(self) -> list[Ended]:
        """Return the children that have ended since; what they had started ends with them."""
        try:
            os.read(self.wake, 4096)
        except BlockingIOError:
            pass
        ended = []
        while self._alive:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                break
            # While it is a zombie nobody else can have its number.
            kill_group(found.si_pid)
            os.waitpid(found.si_pid, 0)
            self._alive.discard(found.si_pid)
            exited = found.si_code == os.CLD_EXITED
            ended.append(
                Ended(found.si_pid, found.si_status if exited else None, None if exited else found.si_status)
            )
        return ended

    def wait(self, timeout: float, bury: Callable[[list[Ended]], None]) -> None:
        """Wait until all children have ended, for at most `timeout` seconds; `bury` gets those that have."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        bury(self.ended())
        while self._alive and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            bury(self.ended())

    def kill_all(self) -> None:
        """SIGKILL all children, and what they have started."""
        for pid in self._alive:
            kill_group(pid)


def kill_group(pid: int) -> None:
    """SIGKILL a process and the group that it leads."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        return
