"""A socket that a selector watches and that never blocks.

Standard library only: the server imports this module.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections import deque
from collections.abc import Callable
from threading import Lock

from parsl_flux_bulk.protocol.framing import LENGTH, take_messages

_SMALL_READ_SIZE = 1 << 16
"""Bytes of the first read. For 128 KiB or more, malloc would map and unmap pages for each."""
_READ_SIZE = 1 << 18
_READ_BUDGET = 1 << 22
"""Bytes that one `receive` reads at most, so that one fast sender does not starve the others."""
LONGEST_WAIT = 86400.0
"""Longest timeout (s) for a selector: epoll_wait(2) counts milliseconds in an int."""
_ANCILLARY_SIZE = socket.CMSG_SPACE(4 * 8)
"""Bytes for file descriptors that come with one read."""
_VECTORS = 64
"""Buffers passed to one sendmsg(2); the limit of the system is IOV_MAX, 1024."""


class FramedSocket:
    """A non-blocking socket that sends and receives whole messages and never waits.

    Registers with a selector, for reading, and for writing as long as a message waits to be sent.

    Parameters
    ----------
    sock : socket.socket
    selector : selectors.BaseSelector
    ready : callable
        The data of the selector's key; has to call :meth:`receive`.
    take_descriptor : callable
        Takes each file descriptor that comes with a message, to close it in the end.

    Attributes
    ----------
    closed : bool
        The other end has closed, and all that it sent has been received; or this end has.
    """

    def __init__(
        self,
        sock: socket.socket,
        selector: selectors.BaseSelector,
        ready: Callable[[], object],
        take_descriptor: Callable[[int], object] = os.close,
    ) -> None:
        sock.setblocking(False)
        self.closed = False
        self._sock = sock
        self._selector = selector
        self._ready = ready
        self._take_descriptor = take_descriptor
        self._unsent: deque[memoryview] = deque()
        self._writing = False
        self._received = bytearray()
        self._broken = False
        self._lock = Lock()
        selector.register(sock, selectors.EVENT_READ, ready)

    def send(self, body: bytes) -> None:
        """Send a message or keep what cannot be sent yet; drop it if the other end has closed.

        Any thread may call this method.
        """
        with self._lock:
            if self._broken or self.closed:
                return
            waiting = bool(self._unsent)
            self._unsent.append(memoryview(LENGTH.pack(len(body))))
            if body:
                self._unsent.append(memoryview(body))
            if not waiting:
                self._flush()
            self._update_selector()

    def send_packet(self, content: bytes) -> bool:
        """Send a packet of a SOCK_SEQPACKET socket, at once or not at all; return whether it was sent."""
        with self._lock:
            try:
                return not self.closed and self._sock.send(content) == len(content)
            except OSError:
                return False

    def _flush(self) -> None:
        while self._unsent:
            vectors = [self._unsent[i] for i in range(min(len(self._unsent), _VECTORS))]
            try:
                sent = self._sock.sendmsg(vectors)
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

    def _update_selector(self) -> None:
        writing = bool(self._unsent)
        if writing != self._writing:
            self._writing = writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            self._selector.modify(self._sock, events, self._ready)

    def receive(self) -> list[bytes]:
        """Send what waits, and return the complete messages received so far."""
        if self._unsent:
            with self._lock:
                self._flush()
                self._update_selector()
        taken, size = 0, _SMALL_READ_SIZE
        while taken < _READ_BUDGET:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(size, _ANCILLARY_SIZE)
            except BlockingIOError:
                break
            except ConnectionResetError:  # reported once, before what was sent
                continue
            except OSError:
                data, ancillary = b"", []
            if not data:
                self._stop_watching()
                break
            for _, _, descriptors in ancillary:
                for descriptor in memoryview(descriptors).cast("i"):
                    self._take_descriptor(descriptor)
            self._received += data
            taken += len(data)
            if len(data) < size:
                break
            size = _READ_SIZE
        return take_messages(self._received)

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._stop_watching()
        with self._lock:
            self._unsent.clear()
            self._sock.close()

    def _stop_watching(self) -> None:
        with self._lock:
            if not self.closed:
                self.closed = True
                self._selector.unregister(self._sock)
