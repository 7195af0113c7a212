"""The workers' channel of the embedded instance: a Unix socket, served without blocking.

A peer is a connected process of a job. Who may connect is decided by the directory that the socket
is in, which only this user may enter.
"""

from __future__ import annotations

import selectors
import socket
from functools import partial

from parsl_flux_bulk.instances.base import Event, PeerId, PeerLost, PeerMessage
from parsl_flux_bulk.instances.local.framed_socket import FramedSocket

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path at most; unix(7)."""


class ChannelServer:
    """Listens on a socket; registers with the selector of the thread that uses it.

    Parameters
    ----------
    path : str
        Where to listen.
    selector : selectors.BaseSelector
        The data of its keys is called when they are ready.
    events : list
        Messages and lost peers are appended to it.
    """

    def __init__(self, path: str, selector: selectors.BaseSelector, events: list[Event]) -> None:
        self.path = path
        self._selector = selector
        self._events = events
        self._peers: dict[PeerId, FramedSocket] = {}
        self._introduced: set[PeerId] = set()
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
            self._count += 1
            receive = partial(self._receive, self._count)
            self._peers[self._count] = FramedSocket(sock, self._selector, receive)

    def _receive(self, peer: int) -> None:
        link = self._peers[peer]
        for body in link.receive():
            self._introduced.add(peer)
            self._events.append(PeerMessage(peer, body))
        if link.closed:
            self._peers.pop(peer).close()
            if peer in self._introduced:
                self._introduced.remove(peer)
                self._events.append(PeerLost(peer))

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send to a peer; what it does not take at once is kept. Ignored if the peer is lost."""
        if peer in self._peers:
            self._peers[peer].send(body)

    def close(self) -> None:
        """Close all connections."""
        for link in self._peers.values():
            link.close()
        self._peers.clear()
        self._selector.unregister(self._listener)
        self._listener.close()
