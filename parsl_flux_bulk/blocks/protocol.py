"""What travels between the executor's relay and a block, and the socket that carries it.

Used by both ends: :mod:`.relay` in the executor, :mod:`parsl_flux_bulk.blocks.main` in the block.

A *packet* is one ZeroMQ message. Its first frame holds any number of records; the bodies of those
that are large follow in frames of their own, in pieces small enough that the heartbeats, which can
only go between two frames, are never late. A record is four numbers and a body::

    kind u8, end u64, what u64, length u64     little-endian

*end* tells apart the completions (and, with REQUEST and REPLY, the requests) of the executor.

::

    block -> executor                                   executor -> block
      KNOCK       is somebody there?                      HERE        yes (answers KNOCK)
      HELLO       body: JSON, see Hello                   WELCOME     (answers HELLO)
      REPLY       end: the request's; what: 0 or 1,       REQUEST     end: its number;
                  body: JSON answer, or what went wrong               body: JSON [verb, argument]
      ENDED       what: job; body: JSON result, or        OPEN        end: number of a new completion
                  nothing for plain success               CLOSE       it was closed
      MESSAGE     what: peer; body: its message           WATCH       what: job
      PEER_LOST   what: peer                              SEND        what: peer; body: a message to it
      BYE         the block ends; body: why               BYE         end yourself; body: why
"""

from __future__ import annotations

import json
import os
import select
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeAlias

import zmq

from parsl_flux_bulk.instances.base import JobResult, JobStatus

KNOCK, HERE, HELLO, WELCOME, BYE = range(1, 6)
REQUEST, REPLY, OPEN, CLOSE = range(6, 10)
WATCH, ENDED, SEND, MESSAGE, PEER_LOST = range(10, 15)

PROTOCOL = 1
"""Changes with every change of what is described here: both ends must say the same."""

Record: TypeAlias = tuple[int, int, int, bytes]
"""Kind, end, what, body."""

_HEAD = struct.Struct("<BQQQ")
_INLINE = 1 << 14
"""Bytes of a body that travels in the first frame; a longer one gets frames of its own."""

_PIECE = 1 << 20
_RECEIVE_LIMIT = 64
"""Packets taken at once at most, so that whoever wants to send waits for no more than these."""

_COMPLETED = JobResult(JobStatus.COMPLETED, exit_code=0)


class Hello(NamedTuple):
    """How a block introduces itself.

    Attributes
    ----------
    protocol : int
    block_id, host : str
    pid : int
    description : str
        The block's instance's own.
    name_of_zero : str
        What the block's instance calls the job with the id 0, which shows how it writes ids.
    seconds_left : float or None
        Until its allocation ends, if it knows; not a point in time, since clocks differ.
    capacity : tuple of int
        Nodes, cores, GPUs.
    environment : dict of str to str
        The block's own, in which jobs there are to begin: what ``worker_init`` did is in it.
    """

    protocol: int
    block_id: str
    host: str
    pid: int
    description: str
    name_of_zero: str
    seconds_left: float | None
    capacity: tuple[int, int, int]
    environment: dict[str, str]


def pack(records: Iterable[Record]) -> list[bytes | memoryview]:
    """Return the frames of a packet."""
    head: list[bytes] = []
    pieces: list[bytes | memoryview] = []
    for kind, end, what, body in records:
        head.append(_HEAD.pack(kind, end, what, len(body)))
        if len(body) <= _INLINE:
            head.append(body)
        else:
            view = memoryview(body)
            pieces += [view[at : at + _PIECE] for at in range(0, len(body), _PIECE)]
    return [b"".join(head), *pieces]


def unpack(frames: Sequence[bytes]) -> list[Record]:
    """Return the records of a packet.

    Raises
    ------
    ValueError
        It is not one.
    """
    records: list[Record] = []
    head, at, used = frames[0], 0, 1
    try:
        while at < len(head):
            kind, end, what, length = _HEAD.unpack_from(head, at)
            at += _HEAD.size
            if length <= _INLINE:
                body = head[at : at + length]
                at += length
            else:
                pieces = -(-length // _PIECE)
                body = b"".join(frames[used : used + pieces])
                used += pieces
            if len(body) != length:
                raise ValueError(f"a body of {len(body)} bytes that should have {length}")
            records.append((kind, end, what, body))
    except struct.error as error:
        raise ValueError(f"not a packet: {error}") from error
    return records


def encode_result(result: JobResult) -> bytes:
    """Write how a job ended; plain success is nothing at all."""
    return b"" if result == _COMPLETED else json.dumps(asdict(result)).encode()


def decode_result(body: bytes) -> JobResult:
    """Read what `encode_result` wrote."""
    if not body:
        return _COMPLETED
    fields = json.loads(body)
    return JobResult(**{**fields, "status": JobStatus(fields["status"])})


class SharedSocket:
    """A ZeroMQ socket on which any thread may send, while one waits and receives.

    A thread that sends need not wake another one to do it, which is most of what a message through a
    relay would cost. A ZeroMQ socket may be used by several threads as long as a lock keeps them apart.

    Parameters
    ----------
    socket : zmq.Socket
        Not bound or connected yet, a ROUTER or a DEALER.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt(zmq.SNDHWM, 0)  # the seam's `send` never waits
        socket.setsockopt(zmq.RCVHWM, 0)
        self._socket = socket
        self._router = socket.getsockopt(zmq.TYPE) == zmq.ROUTER
        # Reentrant: a signal's handler wakes, and may interrupt any of the methods below.
        self._lock = threading.RLock()
        self._closed = False
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        for descriptor in self.descriptors():
            self._poll.register(descriptor, select.POLLIN)

    def descriptors(self) -> list[int]:
        """One of these becomes readable when there is something to receive; edge-triggered."""
        return [int(self._socket.FD), int(self._monitor.FD), self._wake_fd]

    # -- any thread ---------------------------------------------------------------------------

    def send(self, frames: Sequence[bytes | memoryview]) -> bool:
        """Send a message, without waiting; return whether there is anybody to send it to."""
        with self._lock:
            if self._closed:
                return False
            try:
                self._socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.ZMQError:
                return False
            # Sending also takes note of what has arrived, after which the descriptor stays silent.
            arrived = int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        if arrived:
            self.wake()
        return True

    def wake(self) -> None:
        """Make `wait` return."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    # -- one thread ---------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> None:
        """Wait until there may be something to receive, a wake-up, or `timeout` seconds have passed.

        Everything must have been received before: until `receive` returns nothing.
        """
        self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass

    def receive(self, limit: int = _RECEIVE_LIMIT) -> list[tuple[Any, list[bytes]]]:
        """Return `limit` messages, or as many as are there, each with its sender's frame.

        A DEALER has only one to hear of, and None for a frame.
        """
        received: list[tuple[Any, list[bytes]]] = []
        with self._lock:
            try:
                while len(received) < limit:
                    sender = self._socket.recv(zmq.NOBLOCK, copy=False) if self._router else None
                    received.append((sender, self._socket.recv_multipart(zmq.NOBLOCK)))
            except zmq.Again:
                pass
        return received

    def disconnected(self) -> list[int]:
        """Return the descriptors of connections that have ended since the last call."""
        ended = []
        try:
            while True:
                event, _endpoint = self._monitor.recv_multipart(zmq.NOBLOCK)
                ended.append(struct.unpack("=Hi", event)[1])
        except zmq.Again:
            return ended

    def close(self, linger: float = 0.0) -> None:
        """Close; what was sent has `linger` seconds to leave."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake_fd)
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(int(linger * 1000))
