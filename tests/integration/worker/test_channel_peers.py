"""A peer's own end of the channel, over both transports."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import calls
import helpers
import pytest
from executor_end import LENGTH, WORKER, executor_end

from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.worker import handshake
from parsl_flux_bulk.worker.channel import ChannelLost

SERVICE = helpers.PROJECT / "tests" / "flux_service.py"


def framed(*bodies):
    return b"".join(LENGTH.pack(len(body)) + body for body in bodies)


# -- Unix socket ------------------------------------------------------------------------------------------


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
        assert link.wait(5)
        received += link.receive()

    assert received == bodies


def test_several_messages_at_once(unix):
    link, executor = unix
    executor.sendall(framed(b"one", b"two", b"three"))

    assert link.wait(5)
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
    assert 0.09 < time.monotonic() - start < 2


def test_all_that_came_before_the_end_is_received(unix):
    link, executor = unix
    executor.sendall(framed(b"the last line"))
    executor.close()

    assert link.wait(5)
    assert link.receive() == [b"the last line"]
    with pytest.raises(ChannelLost):
        link.receive()
    with pytest.raises(ChannelLost):
        link.wait(5)


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


# -- Flux -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flux_uri():
    with helpers.flux_instance("-s2") as uri:
        yield uri


class Service:
    """``flux_service.py`` in a process of its own."""

    def __init__(self, uri, folder, answer=b"welcome"):
        (folder / "answer").write_bytes(answer)
        self.last = folder / "last"
        self.process = subprocess.Popen(
            [sys.executable, str(SERVICE), str(folder / "answer"), str(folder)],
            env={**os.environ, "FLUX_URI": uri},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name = self.process.stdout.readline().strip()
        self.environment = {"FLUX_URI": uri, "PARSL_FLUX_BULK_CHANNEL": f"flux:0:{self.name}"}

    def said(self, line):
        while (read := self.process.stdout.readline().strip()) != line:
            assert read, f"the service ended before {line!r}"


@pytest.fixture
def service(flux_uri, tmp_path, monkeypatch):
    service = Service(flux_uri, tmp_path)
    monkeypatch.setenv("FLUX_URI", flux_uri)
    yield service
    service.process.kill()
    service.process.communicate()


def connected(service, **environment):
    link = handshake.connect({**service.environment, **environment})
    link.send(b"hello")
    assert link.wait(10)
    assert link.receive() == [b"welcome"]
    return link


def received(link, count, bound=20):
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
    service.said("disconnect")


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
        link.wait(5)
    link.close()


@pytest.mark.flux
def test_flux_the_executor_is_killed(service):
    link = connected(service, PARSL_FLUX_BULK_PING="0.2")
    service.process.kill()
    service.process.wait()

    with pytest.raises(ChannelLost, match="has ended"):
        link.wait(5)
    link.close()


@pytest.mark.flux
def test_flux_an_executor_that_dies_before_it_replies_is_asked_again(service):
    link = connected(service, PARSL_FLUX_BULK_PING="0.2")
    link.send(b"mute")
    assert not link.wait(0.5)
    service.said("ping")
    service.process.kill()
    service.process.wait()

    with pytest.raises(ChannelLost, match="has ended"):
        link.wait(5)
    link.close()


@pytest.mark.flux
def test_flux_a_silent_executor_is_alive_as_long_as_it_answers(service):
    link = connected(service, PARSL_FLUX_BULK_PING="0.05", PARSL_FLUX_BULK_PING_TIMEOUT="0.5")
    assert not link.wait(1.0)

    link.send(b"mute")
    with pytest.raises(ChannelLost, match="did not answer within"):
        link.wait(5)
    link.close()


@pytest.mark.flux
def test_flux_no_such_service(service):
    link = handshake.connect({**service.environment, "PARSL_FLUX_BULK_CHANNEL": "flux:0:no-such"})
    link.send(b"hello")

    with pytest.raises(ChannelLost, match="has ended"):
        link.wait(5)
    link.close()


@pytest.mark.flux
def test_flux_the_broker_ends(tmp_path, monkeypatch):
    with helpers.flux_instance() as uri:
        monkeypatch.setenv("FLUX_URI", uri)
        service = Service(uri, tmp_path)
        link = connected(service)
    with pytest.raises(ChannelLost):
        link.wait(5)
    with pytest.raises(ChannelLost):
        link.send(b"x")
    link.close()
    with pytest.raises(ChannelLost, match="cannot connect to Flux"):
        handshake.connect(service.environment)
    service.process.kill()
    service.process.communicate()


@pytest.mark.flux
def test_flux_a_library_that_cannot_be_loaded_is_passed_over(service, tmp_path):
    (tmp_path / "libflux-core.so.2").write_text("for another kind of machine")

    connected(service, PARSL_FLUX_BULK_LIBFLUX=str(tmp_path / "libflux-core.so.2")).close()


# -- a rank of a task job -----------------------------------------------------------------------------------


def task(function, *arguments, **setup):
    return b"".join(
        (
            frames.encode_json(frames.SETUP, 0, 0, {"sys_path": sys.path, **setup}),
            frames.encode(frames.FUNCTION, 0, 1, serialize.dumps(function)),
            frames.encode_task(0, 7, 1, serialize.dumps((arguments, {}))),
        )
    )


def test_a_rank_makes_one_call(tmp_path):
    with executor_end(tmp_path) as end:
        process = end.start("task", FLUX_TASK_RANK="1", FLUX_JOB_SIZE="2")
        peer = end.accept()
        peer.send(task(calls.print_rank, "rank"))
        (outcome,) = peer.get(frames.OUTCOME)
        peer.until_closed()

        assert peer.frames[0].slot == 0
        assert peer.frames[0].json["rank"] == 1
        assert (outcome.id, serialize.read_outcome(outcome.payload)) == (7, ("1", None))
        assert process.communicate(timeout=10) == (b"rank 1\n", b"")
        assert process.returncode == 0


def test_a_rank_that_exits_has_no_outcome(tmp_path):
    with executor_end(tmp_path) as end:
        process = end.start("task")
        peer = end.accept()
        peer.send(task(os._exit, 3))
        peer.until_closed()

        assert process.wait(10) == 3
        assert not peer.of(frames.OUTCOME)


def test_a_rank_whose_executor_dies_ends_with_what_it_started(tmp_path):
    with executor_end(tmp_path) as end:
        process = end.start("task", PARSL_FLUX_BULK_PING="0.2")
        peer = end.accept()
        note = tmp_path / "pid"
        peer.send(task(calls.start_another, str(note)))
        helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
        # By then it watches: that is a second connection.
        peer.connection.close()
        watching, _ = end.listener.accept()
        end.listener.close()
        watching.close()

        assert b"ending, since the executor" in process.communicate(timeout=10)[1]
        assert process.returncode == -signal.SIGKILL
        helpers.wait_gone([int(note.read_text())], 5)


@pytest.mark.flux
def test_a_pool_that_hears_nothing_asks_now_and_then_and_ends_when_nobody_answers(flux_uri, tmp_path):
    service = Service(flux_uri, tmp_path, frames.encode_json(frames.SETUP, 0, 0, {}))
    pool = subprocess.Popen(
        [sys.executable, str(WORKER)],
        env={
            **os.environ,
            **service.environment,
            "PARSL_FLUX_BULK_MODE": "manager",
            "PARSL_FLUX_BULK_PING": "0.2",
        },
        stderr=subprocess.PIPE,
    )
    service.said("ping")
    before, start = cpu_seconds(pool.pid), time.monotonic()
    service.said("ping")
    service.said("ping")
    assert cpu_seconds(pool.pid) - before < 0.5 * (time.monotonic() - start)

    service.process.kill()
    service.process.communicate()
    assert b"the executor has ended" in pool.communicate(timeout=10)[1]
    assert pool.returncode == 1


def cpu_seconds(pid):
    """What a process has used so far; in hundredths, as the kernel counts."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.flux
def test_a_rank_under_flux_loses_no_long_outcome_at_its_end(flux_uri, tmp_path, monkeypatch):
    service = Service(flux_uri, tmp_path, task(bytes, 50_000_000))
    environment = {**service.environment, "PARSL_FLUX_BULK_MODE": "task", "PARSL_FLUX_BULK_TOKEN": "1"}
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    subprocess.run(
        ["flux", "run", "-N1", *variables, sys.executable, str(WORKER)],
        env={**os.environ, "FLUX_URI": flux_uri},
        check=True,
        timeout=60,
    )
    ((kind, _, id, payload),) = frames.decode(service.last.read_bytes())
    service.process.kill()
    service.process.communicate()

    assert (kind, id) == (frames.OUTCOME, 7)
    assert serialize.read_outcome(bytes(payload)) == (bytes(50_000_000), None)
