"""Messages over a non-blocking stream socket: u64 little-endian length, then the bytes.

The framing of the embedded instance, between a peer and the executor as well as between the client
and its broker. Standard library only: the broker imports it.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

_LENGTH = struct.Struct("<Q")
_READ_SIZE = 1 << 18
_READ_BUDGET = 1 << 22
"""Bytes that one `receive` takes at most, so that one fast sender does not starve the others."""
LONGEST_WAIT = 86400.0
"""Seconds that a selector is asked to wait at most: epoll_wait(2) counts milliseconds in an int."""
_VECTORS = 64
"""Buffers handed to one sendmsg(2); the system's own limit is IOV_MAX, 1024."""


def frame(body: bytes) -> bytes:
    """Return `body` as it travels; for sockets that block."""
    return _LENGTH.pack(len(body)) + body


class FramedSocket:
    """A non-blocking socket that sends and receives whole messages and never waits.

    What cannot be sent yet is kept; call :meth:`flush` when the socket becomes writable while
    :attr:`backlog` is true.

    Attributes
    ----------
    closed : bool
        The other end is gone and everything that it had sent has been received.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.closed = False
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()
        self._broken = False

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self.sock.fileno()

    @property
    def backlog(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._unsent)

    def send(self, body: bytes) -> None:
        """Send a message, or keep what does not go out at once; dropped if the other end is gone."""
        if self._broken:
            return
        self._unsent.append(memoryview(_LENGTH.pack(len(body))))
        if body:
            self._unsent.append(memoryview(body))
        if len(self._unsent) <= 2:
            self.flush()

    def flush(self) -> None:
        """Send as much as goes without waiting."""
        while self._unsent:
            vectors = [self._unsent[i] for i in range(min(len(self._unsent), _VECTORS))]
            try:
                sent = self.sock.sendmsg(vectors)
            except BlockingIOError:
                return
            except OSError:  # the end shows in receive(), after what was still to be read
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
        """Return the whole messages that are there, perhaps none; sets :attr:`closed` at the end."""
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
        return self._split()

    def _split(self) -> list[bytes]:
        messages, at, have = [], 0, len(self._received)
        with memoryview(self._received) as view:
            while have - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, at)
                end = at + _LENGTH.size + length
                if end > have:
                    break
                messages.append(bytes(view[at + _LENGTH.size : end]))
                at = end
        del self._received[:at]
        return messages

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._unsent.clear()
        self.sock.close()
