"""Forks, kills and reaps the worker processes of a manager."""

from __future__ import annotations

import gc
import math
import os
import resource
import select
import signal
import socket
import time
from functools import partial

from parsl_flux_bulk.protocol.wakeup import Wakeup
from parsl_flux_bulk.worker import lifeline
from parsl_flux_bulk.worker.slot import Worker
from parsl_flux_bulk.worker.task_loop import RunningTasks, WorkerProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parsl_flux_bulk.worker.pinning import Binding


class Forkserver:
    """Forks worker processes and learns of their exits.

    Parameters
    ----------
    bindings
        CPUs and environment of each slot.
    open_lane
        Gives the executor the manager's end of a worker's socket, if that is possible.

    Attributes
    ----------
    running : RunningTasks
    wakeup : Wakeup
        Readable when a process may have exited, or on any other signal.
    """

    def __init__(
        self, bindings: Sequence[Binding], open_lane: Callable[[socket.socket], bool] = lambda tasks: False
    ) -> None:
        self.running = RunningTasks(len(bindings))
        lifeline.start_guard(self.running.pids)
        lifeline.adopt_orphans()
        self._bindings = bindings
        self._open_lane = open_lane
        self._alive: set[int] = set()
        self.wakeup = Wakeup()
        self.wakeup.wake_on_signals()
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def fork_workers(
        self, slots: Sequence[int], limit: float, before: Callable[[], None] | None
    ) -> list[Worker]:
        """Fork a worker process for each slot.

        Nothing else runs between two forks: each memory page that is written after a fork is copied.

        Parameters
        ----------
        limit
            Number of tasks after which each worker exits.
        before
            Called first in each worker.

        Raises
        ------
        OSError
            No memory, process or file descriptor is left.
        """
        prepared = [self._prepare(slot, limit) for slot in slots]
        last_descriptor = max(map(int, os.listdir("/proc/self/fd")))
        gc.freeze()  # the collector would write to every page
        pids = []
        for process, *_ in prepared:
            pid = os.fork()
            if not pid:
                if before is not None:
                    before()
                process.main(last_descriptor)
            pids.append(pid)
        workers = []
        for pid, (process, tasks, outcomes, stderr) in zip(pids, prepared, strict=True):
            self._alive.add(pid)
            try:
                os.setpgid(pid, pid)  # the worker does the same; whichever runs first succeeds
            except OSError:
                pass
            for fd in process.descriptors:
                os.close(fd)
            lone = partial(self.running.lone, process.slot)
            workers.append(Worker(pid, tasks, process.tasks, outcomes, stderr, limit, lone))
        return workers

    def _prepare(self, slot: int, limit: float) -> tuple[WorkerProcess, socket.socket, int, int]:
        self.running.clear(slot)
        tasks, worker_tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outcomes, worker_outcomes = os.pipe()
        stderr, worker_stderr = os.pipe()
        descriptors = (worker_outcomes, worker_stderr)
        # The manager has to count the tasks of a worker that may run so many only.
        has_lane = limit == math.inf and self._open_lane(tasks)
        process = WorkerProcess(
            slot, self._bindings[slot], self.running, worker_tasks, descriptors, limit, has_lane
        )
        return process, tasks, outcomes, stderr

    def kill(self, pid: int) -> None:
        """SIGKILL a worker process and what it has started."""
        if pid in self._alive:
            kill_group(pid)

    def kill_all(self) -> None:
        """SIGKILL all worker processes and what they have started."""
        for pid in self._alive:
            kill_group(pid)

    def kill_orphans(self, timeout: float) -> None:
        """SIGKILL what workers that have ended left behind, in at most `timeout` seconds.

        That is what has a process group of its own, such as a daemon; the rest ended with its worker.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0 and (orphans := _children()):
            self._alive.update(orphans)
            self.kill_all()
            self.wait(left, lambda _: None)

    def reap(self) -> list[tuple[int, int]]:
        """Reap the worker processes that have exited, and kill what they had started.

        Returns
        -------
        list of (pid, exit code)
            Minus the number of the signal for a process that was killed.
        """
        self.wakeup.clear()
        exits = []
        while self._alive and (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            # A zombie keeps its pid, so that no other process can have it.
            kill_group(found.si_pid)
            self.running.forget_pid(found.si_pid)
            pid, status = os.waitpid(found.si_pid, 0)
            self._alive.discard(pid)
            exits.append((pid, os.waitstatus_to_exitcode(status)))
        return exits

    def wait(self, timeout: float, on_exits: Callable[[list[tuple[int, int]]], None]) -> None:
        """Wait at most `timeout` seconds for all worker processes to exit; report each exit."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        on_exits(self.reap())
        while self._alive and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            on_exits(self.reap())


def _children() -> list[int]:
    """Return the children of this process; none if the kernel cannot tell."""
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:  # without CONFIG_PROC_CHILDREN, or of a thread that ended
        pass
    return found


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


def raise_descriptor_limit(slots: int) -> None:
    """Raise the soft limit of open files to what this many workers need, as far as the hard limit allows."""
    needed = 128 + 8 * slots
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
