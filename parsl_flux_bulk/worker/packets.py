"""Packets between a manager and its worker processes: one frame each, over a SOCK_SEQPACKET socket.

A frame too long for a packet is in a file in memory, whose descriptor travels with the packet; the packet
then holds only the beginning of the frame.
"""

from __future__ import annotations

import array
import os
import socket

from parsl_flux_bulk.protocol import frames

PACKET_LIMIT = 1 << 16
"""Bytes that fit in a packet; the kernel's default socket buffer is three times that."""

BY_DESCRIPTOR = 0x80
"""Added to the kind of a frame whose content is in a file."""

_ANCILLARY_SIZE = socket.CMSG_SPACE(array.array("i").itemsize)


class MemoryFile:
    """A file in memory, closed with the last reference to this object."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    @classmethod
    def empty(cls) -> MemoryFile:
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("parsl_flux_bulk"))
        # Python was built against an old C library, as conda's is.
        return cls(os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600))

    @classmethod
    def containing(cls, content: memoryview) -> MemoryFile:
        file = cls.empty()
        while content:
            content = content[os.write(file.descriptor, content) :]
        return file


class Packet:
    """A FUNCTION, FORGET or TASK frame for a worker process.

    Attributes
    ----------
    task_id : int
        0 unless the frame is a TASK.
    function_id : bytes
        As in the frame.
    content : bytes-like
        The whole frame, or its beginning if there is a `file`.
    file : MemoryFile or None
        Holds the whole frame.
    """

    __slots__ = ("content", "file", "function_id", "task_id")

    def __init__(
        self, task_id: int, function_id: bytes, content: bytes | memoryview, file: MemoryFile | None = None
    ) -> None:
        self.task_id = task_id
        self.function_id = function_id
        self.content = content
        self.file = file

    def with_file(self) -> Packet:
        """Move the frame to a file unless it fits in a packet."""
        if len(self.content) < PACKET_LIMIT:
            return self
        start = bytes((self.content[0] | BY_DESCRIPTOR,)) + bytes(self.content[1 : frames.CALL_START])
        return Packet(self.task_id, self.function_id, start, MemoryFile.containing(memoryview(self.content)))

    def send(self, sock: socket.socket) -> None:
        """Send the packet; raise BlockingIOError if the queue of the socket is full."""
        if self.file is None:
            sock.send(self.content)
        else:
            rights = array.array("i", (self.file.descriptor,))
            sock.sendmsg([self.content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def function_packet(frame: memoryview) -> Packet:
    """Make the packet of a FUNCTION or FORGET frame, which can be sent to any number of workers."""
    return Packet(0, bytes(frame[frames.ID]), bytes(frame)).with_file()


def task_packet(task_id: int, frame: memoryview) -> Packet:
    """Make the packet of a TASK frame."""
    return Packet(task_id, bytes(frame[frames.HEADER_SIZE : frames.CALL_START]), frame)


def receive(sock: socket.socket, flags: int = 0) -> tuple[bytes, int]:
    """Receive the content of a packet, b"" at the end, and the descriptor that came with it, or -1."""
    content, ancillary, _, _ = sock.recvmsg(PACKET_LIMIT, _ANCILLARY_SIZE, flags)
    if not ancillary:
        return content, -1
    numbers = array.array("i")
    numbers.frombytes(ancillary[0][2][: numbers.itemsize])
    return content, numbers[0]
