"""The workers' channel of the embedded instance: a Unix socket, served without ever waiting.

A peer is a connected process of a job. Who may connect is decided by the directory that the socket
is in, which only this user may enter.
"""

from __future__ import annotations

import selectors
import socket
from functools import partial

from parsl_flux_bulk.instances.base import Event, PeerId, PeerLost, PeerMessage
from parsl_flux_bulk.protocol.framed_socket import FramedSocket

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path at most; unix(7)."""


class _Peer:
    __slots__ = ("id", "known", "link", "writing")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.id = number
        self.link = FramedSocket(sock)
        self.known = False  # has sent a message, so that its end is to be told
        self.writing = False


class PeerServer:
    """Listens on a socket; registers with the selector of the thread that uses it.

    Parameters
    ----------
    path : str
        Where to listen.
    selector : selectors.BaseSelector
        Its keys carry what is to be called when they are ready.
    events : list
        Messages and losses are appended to it.
    """

    def __init__(self, path: str, selector: selectors.BaseSelector, events: list[Event]) -> None:
        self.path = path
        self._selector = selector
        self._events = events
        self._peers: dict[PeerId, _Peer] = {}
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
            except OSError:  # none left, or it has gone again
                return
            self._count += 1
            peer = _Peer(self._count, sock)
            self._peers[peer.id] = peer
            self._selector.register(sock, selectors.EVENT_READ, partial(self._ready, peer))

    def _ready(self, peer: _Peer) -> None:
        peer.link.flush()
        for body in peer.link.receive():
            peer.known = True
            self._events.append(PeerMessage(peer.id, body))
        if peer.link.closed:
            self._forget(peer)
            if peer.known:
                self._events.append(PeerLost(peer.id))
        else:
            self._watch_writing(peer)

    def _watch_writing(self, peer: _Peer) -> None:
        if peer.link.backlog != peer.writing:
            peer.writing = peer.link.backlog
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.writing else 0)
            self._selector.modify(peer.link.sock, mask, partial(self._ready, peer))

    def send(self, peer_id: PeerId, body: bytes) -> None:
        """Send to a peer; what it does not take at once is kept. One that is gone is passed over."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            peer.link.send(body)
            self._watch_writing(peer)

    def _forget(self, peer: _Peer) -> None:
        del self._peers[peer.id]
        self._selector.unregister(peer.link.sock)
        peer.link.close()

    def close(self) -> None:
        """Close all; every peer sees its connection end."""
        for peer in list(self._peers.values()):
            self._forget(peer)
        self._selector.unregister(self._listener)
        self._listener.close()
