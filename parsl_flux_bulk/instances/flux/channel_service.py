"""The workers' channel in a Flux instance: a dynamic service (RFC 12 ``service.add``), and a socket.

Processes on the node of the executor use the socket, which saves both ways through the broker.

A worker's first message is a streaming request (``open``), whose responses carry the executor's messages to
that worker. Each further message of the worker is a request without a response (``send``). Flux reports a
lost worker with a ``disconnect`` request.
"""

from __future__ import annotations

import errno
import selectors
import uuid
from collections.abc import Callable
from typing import Any

from parsl_flux_bulk.instances.base import (
    ChannelAddress,
    Event,
    PeerId,
    PeerLost,
    PeerMessage,
)
from parsl_flux_bulk.instances.socket_channel import SocketChannel
from parsl_flux_bulk.protocol import variables


class ChannelService:
    """The service; registered in the constructor.

    Parameters
    ----------
    handle : flux.Flux
        Its reactor runs the callbacks.
    report : callable
        Receives each event.

    Attributes
    ----------
    name : str
        Address of the service; unique to the executor.
    """

    def __init__(self, handle: Any, report: Callable[[Event], None]) -> None:
        from flux.constants import FLUX_MSGTYPE_REQUEST, FLUX_POLLIN
        from flux.core.inner import ffi, lib

        self._ffi, self._lib = ffi, lib
        self._handle = handle
        self._report = report
        self._peers: dict[PeerId, Any] = {}
        self._watchers: list[Any] = []
        service = f"flux-bulk-{uuid.uuid4().hex[:16]}"
        handle.service_register(service).get()
        for verb, callback in (
            ("open", self._on_open),
            ("send", self._on_send),
            ("ping", self._on_ping),
            ("disconnect", self._on_disconnect),
        ):
            watcher = handle.msg_watcher_create(callback, FLUX_MSGTYPE_REQUEST, f"{service}.{verb}")
            watcher.start()
            self._watchers.append(watcher)
        self.name = f"flux:{handle.get_rank()}:{service}"
        self._socket_name = service
        self._selector = selectors.DefaultSelector()
        # An abstract name, in no directory: nothing is left if this process is killed.
        self._sockets = SocketChannel(f"\0{service}", self._selector, report)
        watcher = handle.fd_watcher_create(self._selector.fileno(), self._on_sockets, FLUX_POLLIN)
        watcher.start()
        self._watchers.append(watcher)

    def address(self) -> ChannelAddress:
        """Return the environment with which a process inside a job finds the service."""
        environment = {variables.CHANNEL: self.name, variables.SOCKET: self._socket_name}
        library = _libflux_path()
        if library:
            environment[variables.LIBFLUX] = library
        return ChannelAddress(environment)

    def send_from_any_thread(self, peer: PeerId, body: bytes, slot: int | None = None) -> bool:
        """Send to a peer or worker that has a socket: the handle belongs to the completion thread."""
        return self._sockets.send(peer, body, slot)

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send a message to a peer; without effect for a peer that is lost."""
        if self._sockets.send(peer, body):
            return
        message = self._peers.get(peer)
        if message is not None:
            self._lib.flux_respond_raw(
                self._handle.handle, message.handle, self._ffi.from_buffer(body), len(body)
            )

    def _on_sockets(self, *_: Any) -> None:
        for key, _events in self._selector.select(0):
            key.data()

    def _on_open(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        peer = self._sender(message)
        self._peers[peer] = message
        self._report(PeerMessage(peer, self._payload(message)))

    def _on_send(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        peer = self._sender(message)
        if peer in self._peers:
            self._report(PeerMessage(peer, self._payload(message)))

    def _on_ping(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        self._lib.flux_respond_raw(self._handle.handle, message.handle, self._ffi.NULL, 0)

    def _on_disconnect(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        peer = self._sender(message)
        if self._peers.pop(peer, None) is not None:
            self._report(PeerLost(peer))

    def _sender(self, message: Any) -> PeerId:
        return bytes(self._ffi.string(self._lib.flux_msg_route_first(message.handle)))

    def _payload(self, message: Any) -> bytes:
        data, size = self._ffi.new("const void *[1]"), self._ffi.new("size_t[1]")
        if self._lib.flux_msg_get_payload(message.handle, data, size) < 0:
            return b""
        return bytes(self._ffi.buffer(data[0], size[0]))

    def close(self) -> None:
        """End every peer's stream, and stop the service."""
        for message in self._peers.values():
            self._lib.flux_respond_error(self._handle.handle, message.handle, errno.ENODATA, self._ffi.NULL)
        self._peers.clear()
        for watcher in self._watchers:
            watcher.stop()
            watcher.destroy()
        self._watchers.clear()
        self._sockets.close()
        self._selector.close()


def _libflux_path() -> str:
    """Return the path of the loaded libflux-core, for workers whose linker does not find the library."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                if "/libflux-core.so" in line:
                    return line.split(maxsplit=5)[5].strip()
    except OSError:
        pass
    return ""
