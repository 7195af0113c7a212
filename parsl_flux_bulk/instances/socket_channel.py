"""The workers' channel over Unix sockets, for processes on this node; served without blocking.

A peer is a connected process of a job. Processes of other users are turned away. A peer may pass on further
sockets, its *lanes*, by which its workers send messages in its name, and take packets.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from functools import partial

from parsl_flux_bulk.instances.base import Event, PeerId, PeerLost, PeerMessage
from parsl_flux_bulk.instances.framed_socket import FramedSocket
from parsl_flux_bulk.protocol import frames
from parsl_flux_bulk.protocol.framing import user_of

_DIED = bytes((frames.DIED,))
_OPEN = frames.encode(frames.OPEN)

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
        self._unopened: dict[PeerId, list[FramedSocket]] = {}
        self._lane_of: dict[tuple[PeerId, int], FramedSocket] = {}
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
        bodies = link.receive()
        if peer in self._unopened:
            self._open_lanes(peer)
        for body in bodies:
            self._introduced.add(peer)
            if body[:1] == _DIED:  # after what the worker sent itself
                for lane in list(self._lanes.get(peer, ())):
                    self._receive_lane(peer, lane)
            self._report(PeerMessage(peer, body))
        if link.closed:
            self._unopened.pop(peer, None)
            for lane in list(self._lanes.pop(peer, ())):
                self._receive_lane(peer, lane)
                self._forget_lane(lane)
            self._peers.pop(peer).close()
            if peer in self._introduced:
                self._introduced.remove(peer)
                self._report(PeerLost(peer))

    def _add_lane(self, peer: int, descriptor: int) -> None:
        sock = socket.socket(fileno=descriptor)
        lane = FramedSocket(sock, self._selector, lambda: self._receive_lane(peer, lane))
        self._lanes.setdefault(peer, set()).add(lane)
        self._unopened.setdefault(peer, []).append(lane)

    def _open_lanes(self, peer: int) -> None:
        """Tell workers that their lanes are read; those whose queue is full are told later."""
        self._unopened[peer] = [
            lane for lane in self._unopened[peer] if not lane.closed and not lane.send_packet(_OPEN)
        ]
        if not self._unopened[peer]:
            del self._unopened[peer]

    def _receive_lane(self, peer: int, lane: FramedSocket) -> None:
        for body in lane.receive():
            if len(body) >= frames.HEADER_SIZE:
                _, slot, _, _ = frames.HEADER.unpack_from(body)
                self._lane_of[peer, slot] = lane
            self._report(PeerMessage(peer, body))
        if lane.closed:
            self._lanes.get(peer, set()).discard(lane)
            self._forget_lane(lane)

    def _forget_lane(self, lane: FramedSocket) -> None:
        for key in [key for key, known in self._lane_of.items() if known is lane]:
            del self._lane_of[key]
        lane.close()

    def send(self, peer: PeerId, body: bytes, slot: int | None = None) -> bool:
        """Send a message to a peer, or with a slot a packet by its worker's lane. Any thread may call this.

        What a peer does not take at once is kept.

        Returns
        -------
        bool
            False for a peer that is not connected here (any more), for a worker that has not used its lane,
            and for a lane that is full.
        """
        if slot is not None:
            lane = self._lane_of.get((peer, slot))
            return lane is not None and lane.send_packet(body)
        link = self._peers.get(peer)
        if link is not None:
            link.send(body)
        return link is not None

    def close(self) -> None:
        """Close all connections."""
        for link in (*self._peers.values(), *(lane for lanes in self._lanes.values() for lane in lanes)):
            link.close()
        self._peers.clear()
        self._lanes.clear()
        self._selector.unregister(self._listener)
        self._listener.close()
