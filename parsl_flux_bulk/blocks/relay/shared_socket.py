"""A ZeroMQ socket on which any thread may send while one thread waits and receives."""

from __future__ import annotations

import select
import struct
import threading
from collections.abc import Sequence
from typing import Any

import zmq

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.protocol.wakeup import Wakeup

_RECEIVE_LIMIT = 64
"""Packets that one `receive` takes, which bounds how long senders wait for the lock."""


class SharedSocket:
    """The socket; a lock makes sharing it between threads legal.

    Sending in the caller's thread saves waking another one, which would be most of a message's cost.

    Parameters
    ----------
    socket : zmq.Socket
        A ROUTER or DEALER, not bound or connected yet.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt(zmq.SNDHWM, 0)  # `send` never blocks.
        socket.setsockopt(zmq.RCVHWM, 0)
        self._socket = socket
        self._router = socket.getsockopt(zmq.TYPE) == zmq.ROUTER
        # Reentrant: a signal handler, which may interrupt any method, calls `wake`.
        self._lock = threading.RLock()
        self._closed = False
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._wakeup = Wakeup()
        self._poll = select.poll()
        for descriptor in self.descriptors():
            self._poll.register(descriptor, select.POLLIN)

    def descriptors(self) -> list[int]:
        """Return descriptors of which one becomes readable when a message arrives; edge-triggered."""
        return [int(self._socket.FD), int(self._monitor.FD), self._wakeup.fileno()]

    # -- any thread ---------------------------------------------------------------------------

    def send(self, frames: Sequence[bytes | memoryview]) -> bool:
        """Send a message without waiting; return whether the other end is connected."""
        with self._lock:
            if self._closed:
                return False
            try:
                self._socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.ZMQError:
                return False
            # Sending also registers arrived messages, after which the descriptor signals nothing.
            arrived = int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        if arrived:
            self.wake()
        return True

    def wake(self) -> None:
        """Make `wait` return."""
        self._wakeup.wake()

    # -- one thread ---------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> None:
        """Wait for a message, a wake-up, or `timeout` seconds.

        Call it only after `receive` has returned nothing, since the descriptors are edge-triggered.
        """
        self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        self._wakeup.clear()

    def receive(self, limit: int = _RECEIVE_LIMIT) -> list[tuple[Any, list[bytes]]]:
        """Return up to `limit` arrived messages, each with its sender's frame (None for a DEALER)."""
        received: list[tuple[Any, list[bytes]]] = []
        with self._lock:
            try:
                while len(received) < limit:
                    sender = self._socket.recv(zmq.NOBLOCK, copy=False) if self._router else None
                    received.append((sender, self._socket.recv_multipart(zmq.NOBLOCK)))
            except zmq.Again:
                pass
        return received

    def disconnected(self) -> list[int]:
        """Return the descriptors of connections that have ended since the last call."""
        ended = []
        try:
            while True:
                event, _endpoint = self._monitor.recv_multipart(zmq.NOBLOCK)
                ended.append(struct.unpack("=Hi", event)[1])
        except zmq.Again:
            return ended

    def close(self, linger: float = 0.0) -> None:
        """Close; sent messages have `linger` seconds to leave."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wakeup.close()
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(int(linger * 1000))


class SocketTransport:
    """A ZeroMQ socket that has joined, as a transport."""

    def __init__(self, socket: SharedSocket) -> None:
        self._socket = socket
        self.wake = socket.wake
        self.wait = socket.wait
        self.close = socket.close

    def send(self, records: list[protocol.Record]) -> None:
        self._socket.send(protocol.pack(records))

    def receive(self) -> list[protocol.Record]:
        return [record for _, frames in self._socket.receive() for record in protocol.unpack(frames)]

    def ended(self) -> bool:
        return bool(self._socket.disconnected())
