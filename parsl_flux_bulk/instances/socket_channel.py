"""The workers' channel over Unix sockets, for processes on this node; served without blocking.

A peer is a connected process of a job. Processes of other users are turned away. A peer may pass on further
sockets, its *lanes*, by which other processes send messages in its name.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from functools import partial

from parsl_flux_bulk.instances.base import Event, PeerId, PeerLost, PeerMessage
from parsl_flux_bulk.instances.framed_socket import FramedSocket
from parsl_flux_bulk.protocol.framing import LANE_OPEN, user_of

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path at most; unix(7)."""


class SocketChannel:
    """Listens on a socket; registers with the selector of the thread that uses it.

    Parameters
    ----------
    path : str
        Where to listen.
    selector : selectors.BaseSelector
        The data of its keys is called when they are ready.
    report : callable
        Receives each message and each lost peer.
    """

    def __init__(
        self, path: str, selector: selectors.BaseSelector, report: Callable[[Event], object]
    ) -> None:
        self.path = path
        self._selector = selector
        self._report = report
        self._peers: dict[PeerId, FramedSocket] = {}
        self._introduced: set[PeerId] = set()
        self._lanes: dict[PeerId, set[FramedSocket]] = {}
        self._count = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # no connection waits any more, or the peer closed it again
                return
            if user_of(sock) != os.getuid():
                sock.close()
                continue
            self._count += 1
            receive = partial(self._receive, self._count)
            add_lane = partial(self._add_lane, self._count)
            self._peers[self._count] = FramedSocket(sock, self._selector, receive, add_lane)

    def _receive(self, peer: int) -> None:
        link = self._peers[peer]
        for body in link.receive():
            self._introduced.add(peer)
            self._report(PeerMessage(peer, body))
        if link.closed:
            for lane in list(self._lanes.pop(peer, ())):
                self._receive_lane(peer, lane)
                lane.close()
            self._peers.pop(peer).close()
            if peer in self._introduced:
                self._introduced.remove(peer)
                self._report(PeerLost(peer))

    def _add_lane(self, peer: int, descriptor: int) -> None:
        sock = socket.socket(fileno=descriptor)
        lane = FramedSocket(sock, self._selector, lambda: self._receive_lane(peer, lane))
        self._lanes.setdefault(peer, set()).add(lane)
        with contextlib.suppress(OSError):  # the worker has ended
            sock.send(LANE_OPEN)

    def _receive_lane(self, peer: int, lane: FramedSocket) -> None:
        for body in lane.receive():
            self._report(PeerMessage(peer, body))
        if lane.closed:
            self._lanes.get(peer, set()).discard(lane)
            lane.close()

    def has(self, peer: PeerId) -> bool:
        """Return whether a peer is connected here."""
        return peer in self._peers

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send to a peer; what it does not take at once is kept. Ignored if the peer is lost."""
        link = self._peers.get(peer)
        if link is not None:
            link.send(body)

    def close(self) -> None:
        """Close all connections."""
        for link in (*self._peers.values(), *(lane for lanes in self._lanes.values() for lane in lanes)):
            link.close()
        self._peers.clear()
        self._lanes.clear()
        self._selector.unregister(self._listener)
        self._listener.close()
