"""A worker: the forked child of a pool, which makes one call after the other.

Tasks come as packets through a socket, one packet a frame, of which this process takes exactly one at a
time: what it has not taken, the pool can still take back. A frame too long for a packet comes as a file
descriptor. Outcomes go back through a pipe. In a cell of memory shared with the pool stands what is being
run, so that the pool knows it even of a process that was killed.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import array
import atexit
import ctypes
import mmap
import os
import socket
import struct

from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.worker import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from parsl_flux_bulk.worker.affinity import Binding

PACKET_LIMIT = 1 << 16
"""Bytes that fit a packet; the kernel's default socket buffer is three times that."""

BY_DESCRIPTOR = 0x80
"""Added to the kind of a packet whose whole frame is in the file that comes with it."""

DEFAULTED_SIGNALS = (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGHUP)
"""Signals that the pool handles and its children do not."""

_ANCILLARY = socket.CMSG_SPACE(array.array("i").itemsize)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_prctl, _fflush = _libc.prctl, _libc.fflush


class Cells:
    """What each child is running, in memory that the pool shares with its children."""

    _CELL = struct.Struct("<QB55x")  # a cache line each

    def __init__(self, slots: int) -> None:
        self.memory = mmap.mmap(-1, slots * self._CELL.size)

    def offset(self, slot: int) -> int:
        """Where a slot's cell begins: 8 bytes of task id, then 1 byte, not 0 once the child has started."""
        return slot * self._CELL.size

    def clear(self, slot: int) -> None:
        """Make ready for another child."""
        self._CELL.pack_into(self.memory, self.offset(slot), 0, 0)

    def read(self, slot: int) -> tuple[int, bool]:
        """Return the id of the task that is being run, or 0, and whether the child has started."""
        running, started = self._CELL.unpack_from(self.memory, self.offset(slot))
        return running, bool(started)


class WorkerProcess:
    """All of a worker's life. Made in the pool, run after the fork.

    Parameters
    ----------
    tasks
        This end of the tasks' socket.
    descriptors
        To write outcomes to, and what shall become standard error.
    limit
        Number of tasks after which to end, or None.
    """

    def __init__(
        self,
        slot: int,
        binding: Binding,
        cells: Cells,
        tasks: socket.socket,
        descriptors: tuple[int, int],
        limit: int | None,
    ) -> None:
        self._slot = slot
        self._binding = binding
        self._cells = cells
        self._tasks = tasks
        self.descriptors = descriptors
        self._outcomes = descriptors[0]
        self._limit = limit
        self._pool = os.getpid()
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._payloads: dict[bytes, memoryview] = {}

    def main(self, last_descriptor: int) -> NoReturn:
        """Run until the pool closes its end, or the limit is reached; never return.

        Parameters
        ----------
        last_descriptor
            The highest one that is open; all but those that are needed get closed.
        """
        status = 1
        try:
            self._begin(last_descriptor)
            self._serve()
            status = 0
            atexit._run_exitfuncs()
            handshake.flush_stdio()
            _fflush(None)
        except BaseException:
            import traceback

            traceback.print_exc()
            handshake.flush_stdio()
        finally:
            os._exit(status)

    def _begin(self, last_descriptor: int) -> None:
        # Every page of memory that is touched here is copied, for each of the workers of a node: what can
        # be done before the fork is done there.
        # Not by way of the signal module, whose enums would touch a hundred pages more.
        _signal.set_wakeup_fd(-1)
        for number in DEFAULTED_SIGNALS:
            _signal.signal(number, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        os.setpgid(0, 0)  # so that we can be ended together with what the user's code starts
        _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._pool:
            os._exit(1)  # it died before that
        os.dup2(self.descriptors[1], 2)
        start = 3
        for kept in (*sorted((self._tasks.fileno(), self._outcomes)), last_descriptor + 1):
            os.closerange(start, kept)
            start = kept + 1
        if self._binding.cpus:
            os.sched_setaffinity(0, self._binding.cpus)
        for name, value in self._binding.environment.items():
            os.environ[name] = value
        self._cells.memory[self._cells.offset(self._slot) + 8] = 1

    def _serve(self) -> None:
        pid = os.getpid()
        cell = slice(self._cells.offset(self._slot), self._cells.offset(self._slot) + 8)
        memory, nothing = self._cells.memory, bytes(8)
        left = -1 if self._limit is None else self._limit
        while left and (frame := self._take()):
            kind = frame[0]
            if kind == frames.TASK:
                memory[cell] = frame[5:13]  # its id; from now on it has started
                outcome = self._run(frame)
                if os.getpid() != pid:
                    os._exit(0)  # the call forked, and its copy came back here as well
                handshake.flush_stdio()
                self._put(frame, outcome)
                memory[cell] = nothing
                left -= 1
            else:
                function_id = bytes(frame[5:13])
                self._functions.pop(function_id, None)
                self._payloads.pop(function_id, None)
                if kind == frames.FUNCTION:
                    self._payloads[function_id] = memoryview(frame)[frames.HEADER_SIZE :]

    def _take(self) -> bytes:
        """Return the next frame, or b"" if there will be none."""
        packet, ancillary, _, _ = self._tasks.recvmsg(PACKET_LIMIT, _ANCILLARY)
        if not ancillary:
            return packet
        descriptor = received_descriptor(ancillary)
        try:
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)

    def _run(self, frame: bytes) -> bytes:
        call = frames.HEADER_SIZE + frames.FUNCTION_ID_SIZE
        function_id = frame[frames.HEADER_SIZE : call]
        function = self._functions.get(function_id)
        if function is None:
            # Only now: what reading it imports belongs to this task, also if it is the end of us.
            try:
                function = serialize.loads(self._payloads[function_id])
            except BaseException as error:
                return serialize.not_deserializable("function", error)
            self._functions[function_id] = function
            del self._payloads[function_id]
        return serialize.run(function, memoryview(frame)[call:])

    def _put(self, task: bytes, outcome: bytes) -> None:
        header = frames.HEADER.pack(
            frames.OUTCOME, self._slot, int.from_bytes(task[5:13], "little"), len(outcome)
        )
        if len(outcome) < PACKET_LIMIT:
            header += outcome
            outcome = b""
        for part in (header, outcome):
            left = memoryview(part)
            while left:
                left = left[os.write(self._outcomes, left) :]


def received_descriptor(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the file descriptor that came with a packet."""
    numbers = array.array("i")
    numbers.frombytes(ancillary[0][2][: numbers.itemsize])
    return numbers[0]
