"""The executor's end of the channel, for tests of managers and ranks: a Unix socket and no thread."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import PROJECT

from parsl_flux_bulk.protocol import frames

LENGTH = struct.Struct("<Q")
WORKER = PROJECT / "parsl_flux_bulk" / "worker" / "main.py"


class Frame:
    """A frame from a peer."""

    def __init__(self, kind: int, slot: int, id: int, payload: bytes) -> None:
        self.kind, self.slot, self.id, self.payload = kind, slot, id, payload

    @property
    def json(self) -> dict[str, object]:
        return frames.decode_json(self.payload)

    def __repr__(self) -> str:
        return f"Frame({self.kind}, slot={self.slot}, id={self.id}, {self.payload[:60]!r})"


class Peer:
    """A connected peer; `frames` holds all frames that it has sent, by its connection and by its lanes."""

    def __init__(self, connection: socket.socket, with_lanes: bool = False) -> None:
        self.connection = connection
        self.with_lanes = with_lanes
        self.lanes: list[Peer] = []
        connection.setblocking(False)
        self.frames: list[Frame] = []
        self.messages = 0
        self.slot: int | None = None
        self._unopened: list[Peer] = []
        self.closed = False
        self._buffer = bytearray()

    def send(self, *frames: bytes) -> None:
        """Send one message; read meanwhile, so that the two ends do not block each other."""
        body = b"".join(frames)
        left = memoryview(LENGTH.pack(len(body)) + body)
        while left:
            try:
                left = left[self.connection.send(left) :]
            except BlockingIOError:
                select.select([self.connection], [self.connection], [], 10)
                self.read()

    def read(self) -> None:
        while not self.closed:
            try:
                data = self._receive()
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self.closed = not data
            self._buffer += data
        while len(self._buffer) >= 8:
            (length,) = LENGTH.unpack_from(self._buffer)
            if len(self._buffer) < 8 + length:
                break
            message = bytes(self._buffer[8 : 8 + length])
            del self._buffer[: 8 + length]
            self.messages += 1
            self.frames += [Frame(k, s, i, bytes(p)) for k, s, i, p in frames.decode(message)]
        self._unopened = [lane for lane in self._unopened if not lane.send_packet(frames.encode(frames.OPEN))]
        for lane in self.lanes:
            lane.read()
            for frame in lane.frames:
                lane.slot = frame.slot
            self.frames += lane.frames
            lane.frames.clear()

    def _receive(self) -> bytes:
        if not self.with_lanes:
            return self.connection.recv(1 << 20)  # drops descriptors
        data, descriptors, _, _ = socket.recv_fds(self.connection, 1 << 20, 8)
        for descriptor in descriptors:
            lane = Peer(socket.socket(fileno=descriptor))
            self.lanes.append(lane)
            self._unopened.append(lane)
        return data

    def send_packet(self, packet: bytes) -> bool:
        """Send a packet on a lane; return whether there was room, or the worker has ended."""
        try:
            self.connection.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            self.slot = None
        return True

    def lane_of(self, slot: int) -> Peer | None:
        """Return the lane by which the worker of a slot has sent an outcome."""
        lanes = [lane for lane in self.lanes if lane.slot == slot and not lane.closed]
        return lanes[-1] if lanes else None

    def close(self) -> None:
        for peer in (self, *self.lanes):
            peer.connection.close()

    def until(self, condition: Callable[[], object], bound: float = 60.0, what: str = "") -> None:
        """Read until `condition` holds; the test fails if it does not within `bound` seconds."""
        deadline = time.monotonic() + bound
        while True:
            self.read()
            if condition():
                return
            left = deadline - time.monotonic()
            assert left > 0, f"not within {bound} s: {what or condition}; last frames {self.frames[-5:]}"
            assert not self.closed, f"the peer closed before {what or condition}; frames {self.frames[-5:]}"
            lanes = [lane.connection for lane in self.lanes if not lane.closed]
            select.select([self.connection, *lanes], [], [], min(left, 1.0))

    def until_closed(self, bound: float = 60.0) -> None:
        deadline = time.monotonic() + bound
        while not self.closed:
            assert time.monotonic() < deadline, f"still connected after {bound} s"
            select.select([self.connection], [], [], 0.1)
            self.read()

    def of(self, *kinds: int) -> list[Frame]:
        return [frame for frame in self.frames if frame.kind in kinds]

    def get(self, kind: int, count: int = 1, bound: float = 60.0) -> list[Frame]:
        """Wait for at least `count` frames of a kind."""
        self.until(lambda: len(self.of(kind)) >= count, bound, f"{count} frames of kind {kind}")
        return self.of(kind)


class ExecutorEnd:
    """Listens as the embedded instance does, and starts ``worker/main.py`` as a job does."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "channel"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.listener.settimeout(60)
        self.peers: list[Peer] = []
        self.with_lanes = False
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PARSL_FLUX_BULK_CHANNEL": f"unix:{self.path}",
            "PARSL_FLUX_BULK_TOKEN": "4711",
        }

    def start(self, mode: str, **more: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            env={**self.environment, "PARSL_FLUX_BULK_MODE": mode, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def accept(self) -> Peer:
        """Wait for a connection and its HELLO."""
        peer = Peer(self.listener.accept()[0], self.with_lanes)
        self.peers.append(peer)
        peer.get(frames.HELLO)
        return peer

    def close(self) -> None:
        self.listener.close()
        for peer in self.peers:
            peer.close()
        for process in self.processes:
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@contextmanager
def executor_end(directory: Path) -> Iterator[ExecutorEnd]:
    end = ExecutorEnd(directory)
    try:
        yield end
    finally:
        end.close()
