"""The pool's side of one worker: what it was given, what it has not started, what it brought back.

A slot outlives its child. Tasks wait in it in two places: here (`waiting`), and in the kernel's queue of the
socket, whose other end the pool keeps open too. So whatever the child has not taken can be taken back, each
task by exactly one of the two.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque

from parsl_flux_bulk.protocol import frames
from parsl_flux_bulk.worker.worker_process import BY_DESCRIPTOR, PACKET_LIMIT, received_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_LONG_QUEUED = 2
"""How many tasks by descriptor a child may hold: a user's descriptors on their way are bounded."""

_READ_SIZE = 1 << 18
_ANCILLARY = socket.CMSG_SPACE(4)
_CALL = frames.HEADER_SIZE + frames.FUNCTION_ID_SIZE


class Frame:
    """A FUNCTION, FORGET or TASK frame on its way to a child.

    Attributes
    ----------
    task_id : int
        0 if it is no task.
    function_id : bytes
        As it is on the wire.
    packet : bytes-like
        What goes through the socket: the frame, or only its beginning if `body` is there.
    body : Memory or None
        The whole of a frame that is too long for a packet.
    """

    __slots__ = ("body", "function_id", "packet", "task_id")

    def __init__(
        self, task_id: int, function_id: bytes, packet: bytes | memoryview, body: Memory | None = None
    ) -> None:
        self.task_id = task_id
        self.function_id = function_id
        self.packet = packet
        self.body = body


class Memory:
    """A file that exists in memory only, closed with the last reference to it."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    @classmethod
    def of(cls, content: memoryview) -> Memory:
        if hasattr(os, "memfd_create"):
            memory = cls(os.memfd_create("parsl_flux_bulk"))
        else:  # Python was built against an old C library, as conda's is
            memory = cls(os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600))
        while content:
            content = content[os.write(memory.descriptor, content) :]
        return memory


def function_frame(kind: int, frame: memoryview) -> Frame:
    """Return a FUNCTION or FORGET frame, ready to be given to any number of children."""
    return _packed(kind, 0, bytes(frame[5:13]), bytes(frame))


def task_frame(task_id: int, frame: memoryview) -> Frame:
    """Return a TASK frame, ready to be given."""
    return Frame(task_id, bytes(frame[frames.HEADER_SIZE : _CALL]), frame)


def _packed(kind: int, task_id: int, function_id: bytes, frame: bytes | memoryview) -> Frame:
    if len(frame) < PACKET_LIMIT:
        return Frame(task_id, function_id, frame)
    start = bytes((kind | BY_DESCRIPTOR,)) + bytes(frame[1:_CALL])
    return Frame(task_id, function_id, start, Memory.of(memoryview(frame)))


class Slot:
    """One worker of a pool.

    Attributes
    ----------
    pid : int
        Of its child; 0 while there is none.
    given : dict
        Ids of the tasks that the child was given and has no outcome of -> whether by descriptor.
    waiting : deque of Frame
        What it was not given yet.
    done : int
        Outcomes of this child.
    ending : bool
        It was killed, and is given nothing more.
    full : bool
        Its queue takes nothing more until it takes something out.
    closed : bool
        It has closed its end of the outcomes' pipe.
    """

    def __init__(self, number: int, functions: Mapping[bytes, Frame]) -> None:
        self.number = number
        self.functions = functions
        self.waiting: deque[Frame] = deque()
        self.given: dict[int, bool] = {}
        self.pid = 0
        self.done = 0
        self.ending = False
        self.full = False
        self.closed = False
        self.outcomes = -1
        self._limit: int | None = None
        self._long = 0
        self._knows: set[bytes] = set()
        self._partial = bytearray()
        self._socket: socket.socket | None = None
        self._queue: socket.socket | None = None

    def attach(
        self, pid: int, pair: tuple[socket.socket, socket.socket], outcomes: int, limit: int | None
    ) -> None:
        """Take a new child: its pid, both ends of its socket, the end of its pipe, its limit of tasks."""
        self.pid = pid
        self._socket, self._queue = pair
        self._socket.setblocking(False)
        self.outcomes = outcomes
        os.set_blocking(outcomes, False)
        self._limit = limit
        self.given.clear()
        self._knows.clear()
        self._partial.clear()
        self.done = self._long = 0
        self.ending = self.full = self.closed = False

    def detach(self) -> None:
        """Forget the child, which has ended."""
        self.hang_up()
        if self.outcomes >= 0:
            os.close(self.outcomes)
        self.pid, self.outcomes = 0, -1
        self.given.clear()
        # A successor knows nothing that it could forget.
        self.waiting = deque(frame for frame in self.waiting if frame.task_id)

    def hang_up(self) -> None:
        """Let the child find the end of its tasks."""
        for end in (self._socket, self._queue):
            if end is not None:
                end.close()
        self._socket = self._queue = None

    def socket_fileno(self) -> int:
        """The file descriptor to watch, while `full`, for the socket to have room again."""
        return -1 if self._socket is None else self._socket.fileno()

    def give(self) -> None:
        """Give the child of what waits as much as it can take now."""
        waiting, given = self.waiting, self.given
        while waiting and not (self.ending or self.full):
            frame = waiting[0]
            if not frame.task_id:
                if not self._put(frame):
                    return
            else:
                if self._limit is not None and self.done + len(given) >= self._limit:
                    return
                if frame.body is None and len(frame.packet) >= PACKET_LIMIT:
                    if self._long >= _LONG_QUEUED:
                        return
                    frame = _packed(frames.TASK, frame.task_id, frame.function_id, frame.packet)
                    waiting[0] = frame
                if frame.function_id not in self._knows:
                    function = self.functions.get(frame.function_id)
                    if function is None:
                        raise frames.FrameError(f"task {frame.task_id} is of a function that was never sent")
                    if not self._put(function):
                        return
                    self._knows.add(frame.function_id)
                if not self._put(frame):
                    return
                given[frame.task_id] = frame.body is not None
                self._long += frame.body is not None
            waiting.popleft()

    def forget(self, function_id: bytes, frame: Frame) -> None:
        """Let the child forget a function, if it knows it."""
        if function_id in self._knows:
            self._knows.discard(function_id)
            self.waiting.append(frame)
            self.give()

    def take_back(self) -> None:
        """Move what the child has not taken from its queue back to `waiting`."""
        taken: list[Frame] = []
        while self._queue is not None:
            try:
                packet, ancillary, _, _ = self._queue.recvmsg(PACKET_LIMIT, _ANCILLARY, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            kind, _, id, _ = frames.HEADER.unpack_from(packet)
            body = Memory(received_descriptor(ancillary)) if ancillary else None
            if kind & ~BY_DESCRIPTOR == frames.TASK:
                taken.append(Frame(id, packet[frames.HEADER_SIZE : _CALL], packet, body))
                self._long -= self.given.pop(id)
            elif kind & ~BY_DESCRIPTOR == frames.FUNCTION:
                self._knows.discard(packet[5:13])
            else:
                taken.append(Frame(0, b"", packet))
        self.waiting.extendleft(reversed(taken))
        self.full = False

    def waiting_size(self) -> int:
        """Bytes that wait."""
        return sum(len(frame.packet) for frame in self.waiting)

    def remove(self, task_id: int) -> list[int]:
        """Remove a task, or all with 0, from `waiting`; return the ids of those removed."""
        kept: deque[Frame] = deque()
        removed = []
        for frame in self.waiting:
            if frame.task_id and task_id in (0, frame.task_id):
                removed.append(frame.task_id)
            else:
                kept.append(frame)
        self.waiting = kept
        return removed

    def read(self) -> bytes | None:
        """Return the whole OUTCOME frames that the child's pipe has now; part of one is kept for later.

        Returns
        -------
        bytes or None
            None if the pipe has nothing; `closed` then says whether it can have more.
        """
        try:
            data = os.read(self.outcomes, _READ_SIZE)
        except BlockingIOError:
            return None
        if not data:
            self.closed = True
            return None
        partial = self._partial
        if partial:
            partial += data
            end = self._scan(partial)
            whole = bytes(memoryview(partial)[:end]) if end else b""
            del partial[:end]
            return whole
        end = self._scan(data)
        if end == len(data):
            return data
        partial += memoryview(data)[end:]
        return data[:end]

    def _scan(self, data: bytes | bytearray) -> int:
        """Note the outcomes of which all bytes are there; return where the last of them ends."""
        size, start, given = len(data), 0, self.given
        unpack, header = frames.HEADER.unpack_from, frames.HEADER_SIZE
        while size - start >= header:
            _, _, id, length = unpack(data, start)
            end = start + header + length
            if end > size:
                break
            self._long -= given.pop(id)
            self.done += 1
            start = end
        return start

    def _put(self, frame: Frame) -> bool:
        """Put a frame into the child's queue; return False, and note that it is full, if it is."""
        assert self._socket is not None
        try:
            if frame.body is None:
                self._socket.send(frame.packet)
            else:
                rights = array.array("i", (frame.body.descriptor,))
                self._socket.sendmsg([frame.packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except BlockingIOError:
            self.full = True
        return not self.full
