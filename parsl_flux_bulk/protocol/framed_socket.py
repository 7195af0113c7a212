"""Send and receive messages over a stream socket: u64 length, little-endian, then the bytes.

The embedded instance uses this format between a process of a job and the executor, and between the client
and the server. Standard library only: the server imports this module.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

LENGTH = struct.Struct("<Q")
_READ_SIZE = 1 << 18
_READ_BUDGET = 1 << 22
"""Bytes that one `receive` reads at most, so that one fast sender does not starve the others."""
LONGEST_WAIT = 86400.0
"""Longest timeout (s) for a selector: epoll_wait(2) counts milliseconds in an int."""
_VECTORS = 64
"""Buffers passed to one sendmsg(2); the limit of the system is IOV_MAX, 1024."""


def frame(body: bytes) -> bytes:
    """Return a message with its length before it; for blocking sockets."""
    return LENGTH.pack(len(body)) + body


def take_messages(received: bytearray) -> list[bytes]:
    """Remove the complete messages from the front of what was received, and return them."""
    messages, start, size = [], 0, len(received)
    with memoryview(received) as view:
        while size - start >= LENGTH.size:
            body = start + LENGTH.size
            end = body + LENGTH.unpack_from(view, start)[0]
            if end > size:
                break
            messages.append(bytes(view[body:end]))
            start = end
    del received[:start]
    return messages


class FramedSocket:
    """A non-blocking socket that sends and receives whole messages.

    Data that cannot be sent yet is kept; call :meth:`flush` when the socket becomes writable while
    :attr:`backlog` is true.

    Attributes
    ----------
    closed : bool
        The other end has closed, and all that it sent has been received.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.closed = False
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()
        self._broken = False

    def fileno(self) -> int:
        """Return the file descriptor to wait for."""
        return self.sock.fileno()

    @property
    def backlog(self) -> bool:
        """Whether data waits to be sent."""
        return bool(self._unsent)

    def send(self, body: bytes) -> None:
        """Send a message or keep what cannot be sent yet; drop it if the other end has closed."""
        if self._broken:
            return
        self._unsent.append(memoryview(LENGTH.pack(len(body))))
        if body:
            self._unsent.append(memoryview(body))
        if len(self._unsent) <= 2:
            self.flush()

    def flush(self) -> None:
        """Send as much as possible without waiting."""
        while self._unsent:
            vectors = [self._unsent[i] for i in range(min(len(self._unsent), _VECTORS))]
            try:
                sent = self.sock.sendmsg(vectors)
            except BlockingIOError:
                return
            except OSError:  # receive() reports the end, after all that was sent before it
                self._broken = True
                self._unsent.clear()
                return
            self._drop(sent)

    def _drop(self, sent: int) -> None:
        while sent:
            first = self._unsent.popleft()
            if sent < len(first):
                self._unsent.appendleft(first[sent:])
                return
            sent -= len(first)

    def receive(self) -> list[bytes]:
        """Return the complete messages received so far; set :attr:`closed` at the end of the stream."""
        taken = 0
        while taken < _READ_BUDGET:
            try:
                data = self.sock.recv(_READ_SIZE)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.closed = True
                break
            self._received += data
            taken += len(data)
        return take_messages(self._received)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._unsent.clear()
        self.sock.close()
