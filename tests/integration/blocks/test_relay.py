"""Relayed blocks: how they end, whatever dies first, and who is not let in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helpers
import pytest
import zmq
import zmq.auth
from relay_service import BLOCK, BlockInstance, without_flux

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.server import RelayServer
from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import JobEnded, JobRequest, JobResult, PeerMessage
from parsl_flux_bulk.jobspec import Jobspec
from parsl_flux_bulk.pipeline.job import Job
from parsl_flux_bulk.pipeline.pipeline import Pipeline

BOUND = 60.0
KINDS = [False, pytest.param(True, marks=pytest.mark.flux)]
"""Whether the block has a Flux."""

TRUE_SPEC = json.dumps(
    {
        "version": 1,
        "resources": [
            {"type": "slot", "count": 1, "label": "t", "with": [{"type": "core", "count": 1}]},
        ],
        "tasks": [{"command": ["true"], "slot": "t", "count": {"per_slot": 1}}],
        "attributes": {"system": {"duration": 0, "environment": {"PATH": os.environ["PATH"]}}},
    }
)
SLEEP_SPEC = TRUE_SPEC.replace('["true"]', '["sleep", "600"]')


@contextmanager
def running(**settings: Any) -> Iterator[BlockInstance]:
    instance = BlockInstance(**settings)
    try:
        instance.start()
        yield instance
    finally:
        if instance.process is not None and instance.process.poll() is None:
            instance.process.send_signal(signal.SIGCONT)
        instance.close()


@pytest.fixture(scope="module")
def block() -> Iterator[BlockInstance]:
    """A block for those tests that must not harm it."""
    before = set(helpers.own_processes())
    with running(walltime=1000) as instance:
        ours = set(helpers.own_processes()) - before
        helpers.LONG_LIVED.update(ours)
        yield instance
    helpers.LONG_LIVED.difference_update(ours)


def is_well(block: BlockInstance) -> bool:
    """Whether a block still runs jobs."""
    completion = block.completion()
    try:
        (job_id,) = block.connect().submit([JobRequest(Jobspec.parse(TRUE_SPEC))])
        assert isinstance(job_id, int)
        completion.watch(job_id)
        (event,) = completion.poll(BOUND)
        return event.job_id == job_id and event.result.ok  # type: ignore[union-attr]
    finally:
        completion.close()


def lost_within(bound: float, poll: Any) -> InstanceLost:
    deadline = time.monotonic() + bound
    with pytest.raises(InstanceLost) as caught:
        while time.monotonic() < deadline:
            poll(1.0)
    return caught.value


# -- something dies -----------------------------------------------------------------------------------


class Ends:
    """Hears how jobs end."""

    def __init__(self, count: int) -> None:
        self.submitted = threading.Semaphore(0)
        self.results: list[JobResult] = []
        self.all = threading.Event()
        self._count = count

    def job_submitted(self, job: Job) -> None:
        self.submitted.release()

    def job_ended(self, job: Job, result: JobResult) -> None:
        self.results.append(result)
        if len(self.results) == self._count:
            self.all.set()


@pytest.mark.parametrize("flux", KINDS, ids=["local", "flux"])
def test_every_job_ends_when_the_block_is_killed(flux: bool) -> None:
    before = helpers.descendants(os.getpid())
    with running(flux=flux) as instance:
        assert instance.block is not None
        inside = helpers.descendants(os.getpid()) - before
        ends = Ends(10)
        pipeline = Pipeline(instance)
        pipeline.start()
        for _ in range(10):
            pipeline.submit(Job(), JobRequest(Jobspec.parse(SLEEP_SPEC)), ends)
        for _ in range(10):
            assert ends.submitted.acquire(timeout=BOUND)
        os.kill(instance.block.pid, signal.SIGKILL)
        helpers.wait_event(ends.all, BOUND, "the ends of all jobs")
        assert {result.exception for result in ends.results} == {"instance-lost"}
        assert "block 7" in ends.results[0].note
        with pytest.raises(InstanceLost):
            instance.connect()
        pipeline.close()
        inside -= {os.getpid()}
        helpers.wait_gone(inside, BOUND)
    assert instance.server is not None and instance.server.blocks == []


def test_a_request_that_waits_ends_with_the_block() -> None:
    with running() as instance:
        assert instance.block is not None
        connection = instance.connect()
        os.kill(instance.block.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (instance.block.pid, signal.SIGKILL)).start()
        with pytest.raises(InstanceLost, match="block 7"):
            connection.capacity()


def test_a_block_whose_host_falls_silent_is_lost() -> None:
    # A stopped process answers as little as a dead host.
    with running(relay={"heartbeat": 0.3, "silence": 3.0}) as instance:
        assert instance.process is not None
        completion = instance.completion()
        instance.process.send_signal(signal.SIGSTOP)
        lost_within(BOUND, completion.poll)
        instance.process.send_signal(signal.SIGCONT)
        assert instance.process.wait(BOUND) == 1
        assert "the connection to the executor ended" in instance.said()


def test_a_block_ends_itself_when_the_executor_falls_silent(tmp_path: Path) -> None:
    source = """
    from relay_service import BlockInstance
    instance = BlockInstance(unreachable_timeout=3)
    instance.start()
    print("up", flush=True)
    instance.completion().poll(None)
    """
    with helpers.script(source, tmp_path) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "up\n", user.communicate()
        block = helpers.descendants(user.pid)
        assert block
        user.send_signal(signal.SIGSTOP)
        helpers.wait_gone(block, BOUND)


def test_a_block_that_finds_nobody_ends_itself(block: BlockInstance, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # accepts, and says nothing
        settings = tmp_path / "block.json"
        settings.write_text(
            json.dumps(
                {
                    "addresses": ["127.0.0.1", "::1"],
                    "port": nobody.getsockname()[1],
                    "certificates": str(block.certificates),
                    "unreachable_timeout": 1,
                }
            )
        )
        ended = run_block(settings)
    assert ended.returncode == 1
    assert "no executor answered within 1 s at 127.0.0.1, ::1" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def run_block(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BLOCK), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=without_flux(),
    )


def test_sigterm_is_told_to_the_executor() -> None:
    with running() as instance:
        assert instance.process is not None
        completion = instance.completion()
        completion.channel()
        instance.process.terminate()
        error = lost_within(BOUND, completion.poll)
        assert "SIGTERM" in str(error)
        assert instance.process.wait(BOUND) == 1


def test_a_block_that_is_closed_ends_well_and_its_jobs_with_it() -> None:
    with running() as instance:
        assert instance.block is not None and instance.process is not None
        instance.connect().submit([JobRequest(Jobspec.parse(SLEEP_SPEC))])
        inside = helpers.descendants(instance.process.pid)
        instance.block.close()
        assert instance.process.wait(BOUND) == 0
        helpers.wait_gone(inside)
        assert "done with this block" in instance.said()
        with pytest.raises(InstanceLost, match="it was closed"):
            instance.block.connect()


@pytest.mark.flux
def test_a_block_of_several_nodes_is_one_block(tmp_path: Path) -> None:
    ready = "from parsl_flux_bulk.worker import handshake; import os; c = handshake.connect(os.environ); "
    source = (
        ready + 'c.send(os.environ["FLUX_TASK_RANK"].encode()); c.wait(30); c.send(c.receive()[0] + b"!")'
    )
    with running(flux=True, options=["-s2"]) as instance:
        assert instance.server is not None and len(instance.server.blocks) == 1
        connection, completion = instance.connect(), instance.completion()
        assert connection.capacity().nodes == 2
        spec = json.loads(TRUE_SPEC)
        spec["resources"] = [{"type": "node", "count": 2, "with": spec["resources"]}]
        spec["tasks"][0]["command"] = [sys.executable, "-c", source]
        spec["attributes"]["system"]["environment"].update(
            {**completion.channel().environment, "PYTHONPATH": str(BLOCK.parent.parent)}
        )
        (job_id,) = connection.submit([JobRequest(Jobspec(spec))])
        assert isinstance(job_id, int)
        completion.watch(job_id)
        heard: dict[Any, list[bytes]] = {}
        result = None
        deadline = time.monotonic() + 60
        while result is None:
            assert time.monotonic() < deadline, heard
            for event in completion.poll(1):
                if isinstance(event, PeerMessage):
                    heard.setdefault(event.peer, []).append(event.body)
                    if len(heard[event.peer]) == 1:
                        completion.send(event.peer, b"to " + event.body)
                elif isinstance(event, JobEnded):
                    result = event.result
        assert result.ok
        assert sorted(heard.values()) == [[b"0", b"to 0!"], [b"1", b"to 1!"]]
        completion.close()


# -- who is not let in --------------------------------------------------------------------------------

PROBE = [bytes(frame) for frame in protocol.pack([(protocol.PROBE, 0, 0, b"")])]


def probe(port: int, bound: float = 1.0, **options: bytes) -> bool:
    """Probe as a ZeroMQ peer with some CURVE options; return whether anybody answers in `bound` seconds."""
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        for name, value in options.items():
            peer.setsockopt(getattr(zmq, name), value)
        peer.connect(f"tcp://127.0.0.1:{port}")
        peer.send_multipart(PROBE)
        return bool(peer.poll(bound * 1000))
    finally:
        context.destroy(linger=0)


def keys(block: BlockInstance, name: str) -> tuple[bytes, bytes | None]:
    return zmq.auth.load_certificate(block.certificates / name)


def test_the_right_certificate_is_let_in(block: BlockInstance) -> None:
    """So that the refusals below mean something."""
    public, secret = keys(block, "client.key_secret")
    assert secret is not None
    server, _ = keys(block, "server.key")
    assert block.server is not None
    keys_of_the_block = {"CURVE_PUBLICKEY": public, "CURVE_SECRETKEY": secret, "CURVE_SERVERKEY": server}
    assert probe(block.server.port, BOUND, **keys_of_the_block)


def test_a_peer_without_a_certificate_is_refused(block: BlockInstance) -> None:
    assert block.server is not None
    assert not probe(block.server.port)
    assert is_well(block)


def test_a_peer_with_another_certificate_is_refused(block: BlockInstance) -> None:
    """It even knows the server's public key."""
    public, secret = zmq.curve_keypair()
    server, _ = keys(block, "server.key")
    assert block.server is not None
    assert not probe(
        block.server.port, CURVE_PUBLICKEY=public, CURVE_SECRETKEY=secret, CURVE_SERVERKEY=server
    )
    assert is_well(block)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48),
        b"\xff" * 100_000,
    ],
    ids=["nothing", "http", "greeting", "ones"],
)
def test_garbage_is_refused(block: BlockInstance, garbage: bytes) -> None:
    assert block.server is not None
    with socket.create_connection(("127.0.0.1", block.server.port)) as peer:
        try:
            peer.sendall(garbage)
        except OSError:
            pass  # refused before it was through
        assert is_well(block)
    assert is_well(block)
    assert len(block.server.blocks) == 1


def test_nonsense_from_an_authenticated_peer_does_no_harm(block: BlockInstance) -> None:
    public, secret = keys(block, "client.key_secret")
    server, _ = keys(block, "server.key")
    assert block.server is not None
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        peer.curve_publickey, peer.curve_secretkey, peer.curve_serverkey = public, secret, server
        peer.connect(f"tcp://127.0.0.1:{block.server.port}")
        for frames in (
            [b"nonsense"],
            [b""],
            [b"", b"", b""],
            *(
                [bytes(f) for f in protocol.pack([(kind, 1, 1, b"{}")])]
                for kind in range(20)
                if kind != protocol.PROBE
            ),
        ):
            peer.send_multipart(frames)
        peer.send_multipart(PROBE)
        assert peer.poll(BOUND * 1000), "the relay does not answer any more"
    finally:
        context.destroy(linger=0)
    assert is_well(block)
    assert len(block.server.blocks) == 1


def test_another_version_is_sent_away(block: BlockInstance) -> None:
    public, secret = keys(block, "client.key_secret")
    server, _ = keys(block, "server.key")
    assert block.server is not None
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        peer.curve_publickey, peer.curve_secretkey, peer.curve_serverkey = public, secret, server
        peer.connect(f"tcp://127.0.0.1:{block.server.port}")
        hello = protocol.Hello(protocol.PROTOCOL + 1, "8", "host", 1, "", "0", None, {})
        peer.send_multipart(protocol.pack([(protocol.HELLO, 0, 0, json.dumps(hello._asdict()).encode())]))
        assert peer.poll(BOUND * 1000)
        ((kind, _, _, why),) = protocol.unpack(peer.recv_multipart())
        assert (kind, b"version" in why) == (protocol.BYE, True)
    finally:
        context.destroy(linger=0)
    assert len(block.server.blocks) == 1


def test_secrets_are_in_private_files_only(block: BlockInstance) -> None:
    assert block.block is not None
    _, client = keys(block, "client.key_secret")
    _, server = keys(block, "server.key_secret")
    assert client is not None and server is not None
    assert block.certificates.stat().st_mode & 0o777 == 0o700
    for pid in (os.getpid(), block.block.pid):
        for what in ("cmdline", "environ"):
            seen = Path(f"/proc/{pid}/{what}").read_bytes()
            assert client not in seen
            assert server not in seen
    settings = json.loads((block.certificates.parent / "block.json").read_text())
    assert client.decode() not in str(settings)


def test_an_open_directory_is_refused_at_both_ends(block: BlockInstance, tmp_path: Path) -> None:
    copy = tmp_path / "certificates"
    shutil.copytree(block.certificates, copy)
    copy.chmod(0o755)
    with pytest.raises(InstanceUnavailable, match="must be private"):
        RelayServer(copy, lambda _: None, host="127.0.0.1")
    settings = tmp_path / "block.json"
    settings.write_text(json.dumps({"addresses": ["127.0.0.1"], "port": 1, "certificates": str(copy)}))
    ended = run_block(settings)
    assert ended.returncode == 1
    assert "mode 0700" in ended.stderr


def test_loopback_is_loopback_only(block: BlockInstance) -> None:
    assert block.server is not None
    wanted = f"{block.server.port:04X}"
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if port == wanted and line.split()[3] == "0A":
                listening.append(address)
    assert listening in (["0100007F"], ["0000000000000000FFFF00000100007F"])


def test_no_free_port_is_said(block: BlockInstance) -> None:
    assert block.server is not None
    taken = block.server.port
    with pytest.raises(InstanceUnavailable, match="cannot listen for blocks on 127"):
        RelayServer(block.certificates, lambda _: None, host="127.0.0.1", ports=(taken, taken + 1))


# -- settings -----------------------------------------------------------------------------------------


def test_what_a_block_says_of_itself(block: BlockInstance) -> None:
    assert block.block is not None
    assert block.block.ends_at is not None
    assert 900 < block.block.ends_at - time.time() <= 1000
    assert (block.block.block_id, block.block.host) == ("7", socket.gethostname())
    assert block.block.environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot use the settings"),
        ('{"unknown": []}', "unexpected keyword argument 'unknown'"),
        ("{}", "missing"),
    ],
)
def test_unusable_settings(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "block.json"
    path.write_text(text)
    ended = run_block(path)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_no_settings() -> None:
    ended = run_block()
    assert ended.returncode == 2
    assert "usage" in ended.stderr


@pytest.mark.parametrize("flux", KINDS, ids=["local", "flux"])
def test_node_init_runs_before_the_block_is_there(flux: bool, tmp_path: Path) -> None:
    with running(flux=flux, node_init=f"echo once >> {tmp_path}/ran"):
        assert (tmp_path / "ran").read_text() == "once\n"


def test_a_failed_node_init_ends_the_block() -> None:
    instance = BlockInstance(node_init="echo because >&2; exit 3")
    try:
        with pytest.raises(InstanceUnavailable, match=r"because\n.*node_init exited with status 3"):
            instance.start()
    finally:
        instance.close()
