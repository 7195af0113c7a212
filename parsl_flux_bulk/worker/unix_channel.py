"""The channel on the executor's node: a Unix stream socket, messages as in `protocol.framing`."""

from __future__ import annotations

import array
import os
import socket

from parsl_flux_bulk.protocol.framing import LENGTH, frame, take_messages, user_of
from parsl_flux_bulk.worker.channel import Channel, ChannelLost

_READ_SIZE = 1 << 16
"""Bytes. For 128 KiB or more, malloc would map and unmap pages for each read."""
_COPY_LIMIT = 1 << 18
"""Bytes of a message below which one copy is cheaper than a second system call."""


class UnixChannel(Channel):
    """A blocking socket, from which `receive` reads without waiting."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ChannelLost(f"cannot connect to the executor's socket {path}: {error}") from error
        if user_of(self._socket) != os.getuid():
            self._socket.close()
            raise ChannelLost(f"the socket {path} belongs to another user")
        self._partial = bytearray()
        self._closed = False

    def send(self, body: bytes) -> None:
        try:
            if len(body) < _COPY_LIMIT:
                self._socket.sendall(frame(body))
            else:
                self._socket.sendall(LENGTH.pack(len(body)))
                self._socket.sendall(body)
        except OSError as error:
            raise ChannelLost(f"the executor closed its socket: {error}") from error

    def open_lane(self, tasks: socket.socket) -> bool:
        rights = array.array("i", (tasks.fileno(),))
        try:  # travels with an empty message
            self._socket.sendmsg([LENGTH.pack(0)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())])
        except OSError as error:
            raise ChannelLost(f"the executor closed its socket: {error}") from error
        return True

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> list[bytes]:
        messages: list[bytes] = []
        while not self._closed:
            try:
                data = self._socket.recv(_READ_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            except OSError:
                data = b""
            if not data:
                self._closed = True
            self._partial += data
            messages += take_messages(self._partial)
        if not messages and not self._received:
            raise ChannelLost("the executor closed its socket")
        return messages
