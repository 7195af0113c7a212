"""The channel over Unix sockets."""

from __future__ import annotations

import os
import selectors
import threading
import uuid

import pytest

from parsl_flux_bulk.instances import framed_socket, socket_channel
from parsl_flux_bulk.instances.base import PeerLost, PeerMessage
from parsl_flux_bulk.instances.socket_channel import SocketChannel
from parsl_flux_bulk.protocol.framing import LANE_OPEN, frame
from parsl_flux_bulk.worker import unix_channel
from parsl_flux_bulk.worker.channel import ChannelLost
from parsl_flux_bulk.worker.unix_channel import UnixChannel


class Bench:
    def __init__(self):
        self.path = f"\0test-{uuid.uuid4().hex}"
        self.selector = selectors.DefaultSelector()
        self.events = []
        self.channel = SocketChannel(self.path, self.selector, self.events.append)

    def serve(self, count):
        while len(self.events) < count:
            ready = self.selector.select(10)
            assert ready, f"{self.events} within 10 s"
            for key, _ in ready:
                key.data()

    def close(self):
        self.channel.close()
        self.selector.close()


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


def test_messages_and_the_loss(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    bench.serve(1)
    peer = bench.events[0].peer
    bench.channel.send(peer, b"welcome")
    assert link.wait(30)
    assert link.receive() == [b"welcome"]
    link.close()
    bench.serve(2)
    assert bench.events == [PeerMessage(peer, b"hello"), PeerLost(peer)]
    bench.channel.send(peer, b"too late")


def test_a_process_of_another_user_is_turned_away(bench, monkeypatch):
    monkeypatch.setattr(socket_channel, "user_of", lambda _: os.getuid() + 1)
    link = UnixChannel(bench.path)
    link.send(b"hello")
    for key, _ in bench.selector.select(10):
        key.data()
    with pytest.raises(ChannelLost):
        link.wait(30)
    link.close()
    assert bench.events == []


def test_a_socket_of_another_user_is_not_used(bench, monkeypatch):
    monkeypatch.setattr(unix_channel, "user_of", lambda _: os.getuid() + 1)
    with pytest.raises(ChannelLost, match="belongs to another user"):
        UnixChannel(bench.path)


def test_two_threads_send_to_a_peer_whose_socket_is_full(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    bench.serve(1)
    peer = bench.events[0].peer
    bodies = [bytes([n]) * 300_000 for n in range(40)]
    thread = threading.Thread(target=lambda: [bench.channel.send(peer, body) for body in bodies[:20]])
    thread.start()
    for body in bodies[20:]:
        bench.channel.send(peer, body)
    received = []
    while len(received) < 40:
        for key, _ in bench.selector.select(0.01):
            key.data()
        received += link.receive()
    thread.join()
    assert sorted(received) == bodies
    assert [body for body in received if body in bodies[:20]] == bodies[:20]
    link.close()


def test_a_read_that_fills_the_buffer_is_followed_by_larger_ones(bench):
    link = UnixChannel(bench.path)
    body = os.urandom(framed_socket._SMALL_READ_SIZE + framed_socket._READ_SIZE)  # noqa: SLF001
    thread = threading.Thread(target=link.send, args=[body])
    thread.start()
    bench.serve(1)
    thread.join()
    assert bench.events[0].body == body
    link.close()


def test_messages_of_a_lane_are_those_of_its_peer_and_come_before_its_loss(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    lane = link.open_lane()
    bench.serve(2)
    assert lane.recv(1) == LANE_OPEN
    peer = bench.events[0].peer
    lane.sendall(frame(b"from the worker"))
    bench.serve(3)
    lane.sendall(frame(b"the last"))
    link.close()
    bench.serve(5)
    bodies = [b"hello", b"", b"from the worker", b"the last"]
    assert bench.events == [*(PeerMessage(peer, body) for body in bodies), PeerLost(peer)]
    assert lane.recv(1) == b"", "closed with the peer"
    lane.close()


def test_a_lane_that_ends_is_not_the_loss_of_its_peer(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    link.open_lane().close()
    link.send(b"still here")
    bench.serve(3)
    for key, _ in bench.selector.select(0.1):
        key.data()
    assert [event.body for event in bench.events] == [b"hello", b"", b"still here"]
    link.close()
    bench.serve(4)
