"""The channel over Flux."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import helpers
import pytest
from executor_end import WORKER
from service_process import Service

from parsl_flux_bulk.protocol import frames
from parsl_flux_bulk.protocol.instance_uri import NO_INSTANCE
from parsl_flux_bulk.worker import handshake
from parsl_flux_bulk.worker.channel import ChannelLost
from parsl_flux_bulk.worker.flux_channel import FluxChannel


def connected(service, **environment):
    link = handshake.connect({**service.environment, **environment})
    link.send(b"hello")
    assert link.wait(30)
    assert link.receive() == [b"welcome"]
    return link


def received(link, count, bound=60):
    """Receive as an event loop does: only after the file descriptor was readable."""
    messages, deadline = list(link.receive()), time.monotonic() + bound
    poll = select.epoll()
    poll.register(link.fileno(), select.EPOLLIN)
    while len(messages) < count:
        assert poll.poll(max(0, deadline - time.monotonic())), f"{len(messages)} of {count} messages"
        messages += link.receive()
    return messages


@pytest.mark.flux
def test_flux_echo_in_order(service):
    link = connected(service)
    bodies = [str(number).encode() for number in range(2000)]
    for body in bodies:
        link.send(body)

    assert received(link, 2000) == bodies
    link.close()
    service.wait_for("disconnect")


@pytest.mark.flux
def test_a_rank_connects_again_when_its_task_has_no_instance(service, monkeypatch):
    monkeypatch.setenv("FLUX_URI", NO_INSTANCE)
    connected(service).close()


@pytest.mark.flux
def test_flux_one_at_a_time(service):
    link = connected(service)
    for number in range(200):
        link.send(b"%d" % number)
        assert received(link, 1) == [b"%d" % number]
    link.close()


@pytest.mark.flux
def test_flux_50_mb_both_ways(service):
    link = connected(service)
    body = random.Random(0).randbytes(50_000_000)
    link.send(body)

    assert received(link, 1, bound=60) == [body]
    assert link.flush(10)
    link.close()


@pytest.mark.flux
def test_flux_flush_means_arrived(service):
    link = connected(service)
    for _ in range(20):
        link.send(b"x" * 1_000_000)
    assert link.flush(30)

    assert service.last.read_bytes() == b"x" * 1_000_000
    assert len(received(link, 20)) == 20
    link.close()


@pytest.mark.flux
def test_flux_the_executor_closes(service):
    link = connected(service)
    link.send(b"one more")
    link.send(b"close")

    assert received(link, 1) == [b"one more"]
    with pytest.raises(ChannelLost, match="has ended"):
        link.wait(30)
    link.close()


@pytest.mark.flux
def test_flux_the_executor_is_killed(service):
    link = connected(service, PARSL_FLUX_BULK_PING="0.2")
    service.kill()

    with pytest.raises(ChannelLost, match="has ended"):
        link.wait(30)
    link.close()


@pytest.mark.flux
def test_flux_an_executor_that_dies_before_it_replies_is_asked_again(service):
    link = connected(service, PARSL_FLUX_BULK_PING="0.2")
    link.send(b"mute")
    assert not link.wait(0.5)
    service.wait_for("ping")
    service.kill()

    with pytest.raises(ChannelLost, match="has ended"):
        link.wait(30)
    link.close()


@pytest.mark.flux
def test_flux_a_silent_executor_is_alive_as_long_as_it_answers(service):
    link = connected(service, PARSL_FLUX_BULK_PING="0.05", PARSL_FLUX_BULK_PING_TIMEOUT="3")
    assert not link.wait(4.0)

    link.send(b"mute")
    with pytest.raises(ChannelLost, match="did not answer within"):
        link.wait(30)
    link.close()


@pytest.mark.flux
def test_flux_no_such_service(service):
    link = handshake.connect({**service.environment, "PARSL_FLUX_BULK_CHANNEL": "flux:0:no-such"})
    link.send(b"hello")

    with pytest.raises(ChannelLost, match="has ended"):
        link.wait(30)
    link.close()


@pytest.mark.flux
def test_flux_the_broker_ends(tmp_path, monkeypatch):
    with helpers.flux_instance() as uri:
        monkeypatch.setenv("FLUX_URI", uri)
        service = Service(uri, tmp_path)
        link = connected(service)
    with pytest.raises(ChannelLost):
        link.wait(30)
    with pytest.raises(ChannelLost):
        link.send(b"x")
    link.close()
    with pytest.raises(ChannelLost, match="cannot connect to Flux"):
        handshake.connect(service.environment)
    service.kill()


@pytest.mark.flux
def test_flux_a_library_that_cannot_be_loaded_is_passed_over(service, tmp_path):
    (tmp_path / "libflux-core.so.2").write_text("for another kind of machine")

    connected(service, PARSL_FLUX_BULK_LIBFLUX=str(tmp_path / "libflux-core.so.2")).close()


@pytest.mark.flux
def test_flux_is_used_where_the_socket_of_the_executor_is_on_another_node(service):
    link = connected(service, PARSL_FLUX_BULK_SOCKET="not-on-this-node")
    assert isinstance(link, FluxChannel)
    link.close()


@pytest.mark.flux
def test_a_manager_pings_a_silent_executor_and_exits_without_an_answer(flux_uri, tmp_path):
    service = Service(flux_uri, tmp_path, frames.encode_json(frames.SETUP, 0, 0, {}))
    manager = subprocess.Popen(
        [sys.executable, str(WORKER)],
        env={
            **os.environ,
            **service.environment,
            "PARSL_FLUX_BULK_MODE": "manager",
            "PARSL_FLUX_BULK_PING": "0.2",
        },
        stderr=subprocess.PIPE,
    )
    service.wait_for("ping")
    before, start = cpu_seconds(manager.pid), time.monotonic()
    service.wait_for("ping")
    service.wait_for("ping")
    assert cpu_seconds(manager.pid) - before < 0.5 * (time.monotonic() - start)

    service.kill()
    assert b"the executor has ended" in manager.communicate(timeout=60)[1]
    assert manager.returncode == 1


def cpu_seconds(pid):
    """What a process has used so far; in hundredths, as the kernel counts."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
