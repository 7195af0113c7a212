"""The channel over Unix sockets."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import uuid

import pytest

from parsl_flux_bulk.instances import framed_socket, socket_channel
from parsl_flux_bulk.instances.base import PeerLost, PeerMessage
from parsl_flux_bulk.instances.socket_channel import SocketChannel
from parsl_flux_bulk.protocol import frames
from parsl_flux_bulk.protocol.framing import frame
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


def open_lane(link):
    """Return the worker's end of a lane, which the manager no longer has, and the manager's end."""
    managers_end, workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    workers_end.settimeout(30)
    assert link.open_lane(managers_end)
    return workers_end, managers_end


def outcome(slot, task_id):
    return frames.encode_outcome(slot, task_id, 1.0, 2.0, b"outcome")


def test_messages_of_a_lane_are_those_of_its_peer_and_come_before_its_loss(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    lane, managers_end = open_lane(link)
    managers_end.close()
    bench.serve(2)
    assert lane.recv(100) == frames.encode(frames.OPEN)
    peer = bench.events[0].peer
    first, last = outcome(0, 1), outcome(0, 2)
    lane.sendall(frame(first))
    bench.serve(3)
    lane.sendall(frame(last))
    link.close()
    bench.serve(5)
    assert bench.events == [
        *(PeerMessage(peer, body) for body in (b"hello", b"", first, last)),
        PeerLost(peer),
    ]
    assert lane.recv(1) == b"", "closed with the peer"
    lane.close()


def test_a_lane_that_ends_is_not_the_loss_of_its_peer(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    for end in open_lane(link):
        end.close()
    link.send(b"still here")
    bench.serve(3)
    for key, _ in bench.selector.select(0.1):
        key.data()
    assert [event.body for event in bench.events] == [b"hello", b"", b"still here"]
    link.close()
    bench.serve(4)


def test_a_packet_goes_to_the_worker_that_has_used_its_lane(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    lanes = [open_lane(link) for _ in range(2)]
    bench.serve(3)
    peer = bench.events[0].peer
    assert not bench.channel.send(peer, b"too early", 7), "nobody knows whose lane that is"
    for slot, (lane, _) in zip((7, 8), lanes, strict=True):
        lane.sendall(frame(outcome(slot, 1)))
    bench.serve(5)
    assert bench.channel.send(peer, b"a packet", 7)
    assert lanes[0][0].recv(100) == frames.encode(frames.OPEN)
    assert lanes[0][0].recv(100) == b"a packet"

    lanes[0][0].shutdown(socket.SHUT_RD)
    assert not bench.channel.send(peer, b"the worker has ended", 7)
    lanes[1][0].close()
    assert not bench.channel.send(peer, b"gone", 8)
    for ends in lanes:
        for end in ends:
            end.close()
    link.close()


def test_a_lane_whose_queue_is_full_is_opened_later(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    lane, managers_end = open_lane(link)
    managers_end.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            managers_end.send(b"a task")
            sent += 1
    bench.serve(2)
    for _ in range(sent):
        assert lane.recv(100) == b"a task"
    link.send(b"an outcome")
    bench.serve(3)
    assert lane.recv(100) == frames.encode(frames.OPEN)
    for end in (lane, managers_end):
        end.close()
    link.close()


def test_an_outcome_by_the_lane_comes_before_the_death_of_its_worker(bench):
    link = UnixChannel(bench.path)
    link.send(b"hello")
    lane, managers_end = open_lane(link)
    bench.serve(2)
    died = frames.encode_json(frames.DIED, 0, 1, {})
    link.send(died)  # whichever the selector finds first
    lane.sendall(frame(outcome(0, 1)))
    bench.serve(4)
    assert [event.body for event in bench.events[2:]] == [outcome(0, 1), died]
    for end in (lane, managers_end):
        end.close()
    link.close()
