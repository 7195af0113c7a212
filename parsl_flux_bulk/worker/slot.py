"""The manager's side of its workers: which tasks each one holds, and in which state its process is.

A `Slot` outlives the worker processes that run in it one after the other; `Worker` stands for one of them.
Tasks wait in two places: in `Slot.waiting`, and in the kernel's queue of the worker's socket. The manager
keeps both ends of that socket open and can take back what the worker has not received; each task goes to
exactly one of the two. On the executor's node, the executor has the manager's end, too: the socket is then
the worker's *lane*, on which lone tasks and their outcomes do not pass through the manager.

==========  =================================================  ==============================
state       meaning                                            next states
==========  =================================================  ==============================
READY       is given tasks                                     BLOCKED and those of BLOCKED
BLOCKED     the queue of its socket is full                    READY, FINISHING, KILLED, ENDED
FINISHING   reached its task limit, or its socket was closed   KILLED, ENDED
KILLED      was sent SIGKILL by the manager                    ENDED
ENDED       was reaped
==========  =================================================  ==============================

Any other transition raises IllegalTransition.
"""

from __future__ import annotations

import os
import socket
from collections import deque

from parsl_flux_bulk.protocol import frames
from parsl_flux_bulk.protocol.states import State, Stateful
from parsl_flux_bulk.worker import packets
from parsl_flux_bulk.worker.packets import BY_DESCRIPTOR, PACKET_LIMIT, MemoryFile, Packet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_QUEUED_FILES = 2
"""Packets with a file that one worker's queue may hold: the system bounds a user's descriptors in flight."""

FLOOD = 16
"""Tasks that a worker is given only if they take some 2 ms or less."""

_READ_SIZE = 1 << 16
"""Bytes that a pipe holds. For 128 KiB or more, malloc would map and unmap pages for each read."""


class WorkerState(State):
    """State of a worker process."""

    READY = "ready", "blocked", "finishing", "killed", "ended"
    BLOCKED = "blocked", "ready", "finishing", "killed", "ended"
    FINISHING = "finishing", "killed", "ended"
    KILLED = "killed", "ended"
    ENDED = ("ended",)


_RUNNING = (WorkerState.READY, WorkerState.BLOCKED)


class Worker(Stateful):
    """One worker process.

    Parameters
    ----------
    pid
    tasks, queue
        The manager's end of the worker's socket, and a copy of the worker's end.
    outcomes, stderr
        File descriptors to read from.
    limit
        Number of tasks after which the process exits; may be infinite.
    lone
        Returns the id of the latest of the tasks in `given` whose outcome went by the lane, and the id of the
        task that came by the lane and has no outcome yet; 0 for none.

    Attributes
    ----------
    state : WorkerState
    given : dict
        Ids of the tasks that the worker was given and has no outcome of -> whether sent with a file.
    done : int
        Number of outcomes.
    retired, overdue : bool
        The worker will run no more tasks; it did not exit in time after the last.
    exceeded : float or None
        The walltime of the running task, for which the worker was killed.
    """

    def __init__(
        self,
        pid: int,
        tasks: socket.socket,
        queue: socket.socket,
        outcomes: int,
        stderr: int,
        limit: float,
        lone: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        tasks.setblocking(False)
        os.set_blocking(outcomes, False)
        self.pid = pid
        self.tasks = tasks
        self.outcomes = outcomes
        self.stderr = stderr
        self.state = WorkerState.READY
        self.given: dict[int, bool] = {}
        self.done = 0
        self.retired = self.overdue = False
        self.exceeded: float | None = None
        self._queue = queue
        self._lone = lone
        self._limit = limit
        self._queued_files = 0
        self._functions: set[bytes] = set()
        self._partial = bytearray()

    @property
    def reached_limit(self) -> bool:
        """Whether the worker has run its last task."""
        return self.done >= self._limit

    def __repr__(self) -> str:
        return f"<Worker {self.pid} {self.state}>"

    def give(self, waiting: deque[Packet], functions: Mapping[bytes, Packet]) -> None:
        """Send the packets that wait, in order, until the queue or the task limit is full."""
        self.note_direct()
        given, ready = self.given, WorkerState.READY
        while waiting and self.state is ready:
            packet = waiting[0]
            if packet.task_id:
                if self.done + len(given) >= self._limit:
                    return
                if len(packet.content) >= PACKET_LIMIT:
                    if self._queued_files >= _QUEUED_FILES:
                        return
                    packet = waiting[0] = packet.with_file()
                if packet.function_id not in self._functions:
                    function = functions.get(packet.function_id)
                    if function is None:
                        raise frames.FrameError(f"task {packet.task_id} names a function that was never sent")
                    if not self._send(function):
                        return
                    self._functions.add(packet.function_id)
                if not self._send(packet):
                    return
                given[packet.task_id] = packet.file is not None
                self._queued_files += packet.file is not None
            elif not self._send(packet):
                return
            waiting.popleft()

    def forget(self, function_id: bytes) -> bool:
        """Note that the function is not to be used again; return whether the worker was sent it."""
        known = function_id in self._functions
        self._functions.discard(function_id)
        return known

    def take_back(self, *, ended: bool = False) -> list[Packet]:
        """Remove the packets that the worker has not received from its queue.

        Parameters
        ----------
        ended
            The process has ended: nothing can be sent to it any more, by the executor neither.
        """
        if ended:
            self._shut_down(self._queue, socket.SHUT_RD)
        self.note_direct()
        taken: list[Packet] = []
        functions: list[Packet] = []
        while self._queue.fileno() >= 0:
            try:
                content, descriptor = packets.receive(self._queue, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not content:  # the end, after a shutdown
                break
            kind, _, id, _ = frames.HEADER.unpack_from(content)
            if kind & ~BY_DESCRIPTOR == frames.TASK:
                file = None if descriptor < 0 else MemoryFile(descriptor)
                taken.append(Packet(id, content[frames.HEADER_SIZE : frames.CALL_START], content, file))
                self._queued_files -= self.given.pop(id)
            elif kind == frames.LONE:
                content = bytes((frames.TASK,)) + content[1:]
                taken.append(Packet(id, content[frames.HEADER_SIZE : frames.CALL_START], content))
            elif kind & ~BY_DESCRIPTOR == frames.FUNCTION:
                file = None if descriptor < 0 else MemoryFile(descriptor)
                functions.append(Packet(0, content[frames.ID], content, file))
            else:
                taken.append(Packet(0, b"", content))
        self.unblock()
        for function in functions:
            # The worker may have received a task in between, which needs it. The queue is empty now.
            if ended or not self.given or not self._send(function):
                self._functions.discard(function.function_id)
        return taken

    def has(self, task_id: int) -> bool:
        """Return whether the worker was given a task, also by its lane, and has no outcome of it."""
        return task_id in self.given or task_id == self.lone_task

    @property
    def lone_task(self) -> int:
        """The id of the task that came by the lane and has no outcome yet; 0 for none."""
        return self._lone()[1]

    def note_direct(self) -> None:
        """Note the outcomes that went by the lane: of that task, all given before it have ended too."""
        task_id, _ = self._lone()
        if task_id in self.given:
            for given in list(self.given):
                self._queued_files -= self.given.pop(given)
                self.done += 1
                if given == task_id:
                    return

    def unblock(self) -> None:
        """Note that the queue has room again."""
        if self.state is WorkerState.BLOCKED:
            self.move_to(WorkerState.READY)

    def read(self) -> bytes | None:
        """Return the complete OUTCOME frames that the worker has sent; None if there is nothing to read.

        Raises
        ------
        EOFError
            The worker closed its end.
        """
        try:
            data = os.read(self.outcomes, _READ_SIZE)
        except BlockingIOError:
            return None
        if not data:
            raise EOFError
        partial = self._partial
        if partial:
            partial += data
            end = self._note_outcomes(partial)
            complete = bytes(memoryview(partial)[:end]) if end else b""
            del partial[:end]
        else:
            end = self._note_outcomes(data)
            complete = data if end == len(data) else data[:end]
            partial += memoryview(data)[end:]
        if self.reached_limit and self.state in _RUNNING:
            self.move_to(WorkerState.FINISHING)
        return complete

    def hang_up(self) -> None:
        """Close the socket, so that the worker exits after its last task."""
        if self.state in _RUNNING:
            self.move_to(WorkerState.FINISHING)
        self._shut_down(self.tasks, socket.SHUT_WR)
        self.tasks.close()
        self._queue.close()

    @staticmethod
    def _shut_down(sock: socket.socket, how: int) -> None:
        # The executor may have the socket, too: to close it is not enough.
        try:
            sock.shutdown(how)
        except OSError:
            pass  # closed already

    def close(self) -> None:
        """Close everything after the process was reaped."""
        self.move_to(WorkerState.ENDED)
        self.hang_up()
        os.close(self.outcomes)

    def _note_outcomes(self, data: bytes | bytearray) -> int:
        """Note the outcomes that are complete; return where the last of them ends."""
        size, start, given = len(data), 0, self.given
        unpack, header = frames.HEADER.unpack_from, frames.HEADER_SIZE
        while size - start >= header:
            _, _, id, length = unpack(data, start)
            end = start + header + length
            if end > size:
                break
            self._queued_files -= given.pop(id, False)
            self.done += 1
            start = end
        return start

    def _send(self, packet: Packet) -> bool:
        try:
            packet.send(self.tasks)
        except BlockingIOError:
            self.move_to(WorkerState.BLOCKED)
            return False
        return True


class Slot:
    """A share of the node's resources: the tasks that wait for it, and its worker.

    Attributes
    ----------
    number : int
    waiting : deque of Packet
        Tasks that no worker was given yet, and FORGETs.
    worker : Worker or None
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting: deque[Packet] = deque()
        self.worker: Worker | None = None

    @property
    def is_flooded(self) -> bool:
        """Whether the worker holds so many tasks that they must be short."""
        return self.worker is not None and len(self.worker.given) >= FLOOD

    def take_back(self, *, ended: bool = False) -> None:
        """Move what the worker has not received, or if it has ended did not receive, back to `waiting`."""
        if self.worker is not None:
            self.waiting.extendleft(reversed(self.worker.take_back(ended=ended)))

    def remove(self, task_id: int) -> list[int]:
        """Remove a task, or all with 0, from `waiting`; return the ids of those removed."""
        removed = [p.task_id for p in self.waiting if p.task_id and task_id in (0, p.task_id)]
        if removed:
            self.waiting = deque(p for p in self.waiting if not p.task_id or task_id not in (0, p.task_id))
        return removed

    def waiting_size(self) -> int:
        """Return the number of bytes that wait."""
        return sum(len(packet.content) for packet in self.waiting)

    def worker_ended(self) -> None:
        """Forget the worker. Its successor has no functions to forget."""
        self.worker = None
        self.waiting = deque(packet for packet in self.waiting if packet.task_id)
