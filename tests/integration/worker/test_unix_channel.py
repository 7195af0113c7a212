"""The channel over a Unix socket."""

from __future__ import annotations

import socket
import time

import pytest
from executor_end import LENGTH

from parsl_flux_bulk.worker import handshake
from parsl_flux_bulk.worker.channel import ChannelLost


def framed(*bodies):
    return b"".join(LENGTH.pack(len(body)) + body for body in bodies)


@pytest.fixture
def unix(tmp_path):
    """A connected channel, and the executor's socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        link = handshake.connect({"PARSL_FLUX_BULK_CHANNEL": f"unix:{tmp_path}/socket"})
        executor, _ = listener.accept()
        with executor:
            yield link, executor
        link.close()


def test_messages_arrive_however_they_are_cut(unix):
    link, executor = unix
    bodies = [b"", b"a", b"bc" * 1000, b"", b"d"]
    received = []
    for byte in framed(*bodies):
        executor.send(bytes((byte,)))
        received += link.receive()
    while len(received) < len(bodies):
        assert link.wait(30)
        received += link.receive()

    assert received == bodies


def test_several_messages_at_once(unix):
    link, executor = unix
    executor.sendall(framed(b"one", b"two", b"three"))

    assert link.wait(30)
    assert link.receive() == [b"one", b"two", b"three"]
    assert link.receive() == []


def test_what_is_sent_can_be_read_there(unix):
    link, executor = unix
    link.send(b"")
    link.send(b"hello")
    expected = framed(b"", b"hello")

    assert executor.recv(len(expected), socket.MSG_WAITALL) == expected


def test_waiting_for_nothing_takes_as_long_as_asked(unix):
    link, _ = unix
    start = time.monotonic()

    assert not link.wait(0.1)
    assert 0.09 < time.monotonic() - start < 30


def test_all_that_came_before_the_end_is_received(unix):
    link, executor = unix
    executor.sendall(framed(b"the last line"))
    executor.close()

    assert link.wait(30)
    assert link.receive() == [b"the last line"]
    with pytest.raises(ChannelLost):
        link.receive()
    with pytest.raises(ChannelLost):
        link.wait(30)


def test_sending_to_nobody(unix):
    link, executor = unix
    executor.close()

    with pytest.raises(ChannelLost):
        link.send(b"x" * 1_000_000)


@pytest.mark.parametrize("address", ["", "unix:", "tcp:1.2.3.4", "flux:x:service", "flux:0:", "flux:0"])
def test_an_address_that_is_none(address):
    with pytest.raises(ChannelLost, match="expected unix:PATH or flux:RANK:SERVICE"):
        handshake.connect({"PARSL_FLUX_BULK_CHANNEL": address})


def test_a_socket_that_is_not_there(tmp_path):
    with pytest.raises(ChannelLost, match="cannot connect"):
        handshake.connect({"PARSL_FLUX_BULK_CHANNEL": f"unix:{tmp_path}/none"})
