"""The format of what the executor and a block's program send each other.

A *packet* is one ZeroMQ message. Its first frame holds any number of records. The body of a large record
follows in frames of its own, in pieces so small that heartbeats, which ZeroMQ sends between two frames only,
are not delayed. A record is a header of `protocol.frames` (kind, end, what, length) and a body. *end* is the
number of a subscription or, for REQUEST and REPLY, of a request.

::

    block -> executor                                   executor -> block
      PROBE       asks for a PROBED                       PROBED
      HELLO       body: JSON, see Hello                   WELCOME     (answers HELLO)
      REPLY       end: the request's; what: 0 or 1,       REQUEST     end: its number;
                  body: JSON answer, or an error                      body: JSON [verb, argument]
      ENDED       what: job; body: see encode_result      WATCH       what: job
                                                          SEND        what: peer; body: a message to it
      MESSAGE     what: peer; body: its message
      PEER_LOST   what: peer
      USAGE       body: JSON, see encode_usage            SURVEY      asks for a USAGE
      BYE         the block ends; body: why               BYE         end yourself; body: why
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple, TypeAlias

from parsl_flux_bulk.instances.base import Capacity, JobResult, JobStatus, Usage, WorkerCores
from parsl_flux_bulk.protocol.frames import HEADER, HEADER_SIZE

PROBE, PROBED, HELLO, WELCOME, BYE = range(1, 6)
REQUEST, REPLY = range(6, 8)
WATCH, ENDED, SEND, MESSAGE, PEER_LOST, SURVEY, USAGE = range(10, 17)

PROTOCOL = 6
"""Version of this format; both ends must have the same."""

Record: TypeAlias = tuple[int, int, int, bytes]
"""Kind, end, what, body."""

INLINE = 1 << 14
"""Bytes of the longest body in a packet's first frame."""

PIECE = 1 << 20
"""Bytes of the longest frame of a larger body."""

_COMPLETED = JobResult(JobStatus.COMPLETED, exit_code=0)

_TIMES = struct.Struct("<dd")


class Hello(NamedTuple):
    """How a block introduces itself.

    Attributes
    ----------
    protocol : int
        See `PROTOCOL`.
    block_id, host : str
    pid : int
        Of the block's program.
    description : str
        Of the block's instance.
    name_of_zero : str
        Name that the block's instance gives to the job id 0, which shows how the instance formats ids.
    seconds_left : float or None
        Until the allocation ends, if known; not a point in time, since clocks differ.
    environment : dict of str to str
        Of the block's program: with what ``worker_init`` set. The block's jobs start with it.
    """

    protocol: int
    block_id: str
    host: str
    pid: int
    description: str
    name_of_zero: str
    seconds_left: float | None
    environment: dict[str, str]


def pack(records: Iterable[Record]) -> list[bytes | memoryview]:
    """Return the frames of a packet."""
    head: list[bytes] = []
    pieces: list[bytes | memoryview] = []
    for kind, end, what, body in records:
        head.append(HEADER.pack(kind, end, what, len(body)))
        if len(body) <= INLINE:
            head.append(body)
        else:
            view = memoryview(body)
            pieces += [view[at : at + PIECE] for at in range(0, len(body), PIECE)]
    return [b"".join(head), *pieces]


def pack_message(records: Iterable[Record]) -> bytes:
    """Return records as one message of the channel, which `protocol.frames.decode` takes apart."""
    return b"".join(
        part for kind, end, what, body in records for part in (HEADER.pack(kind, end, what, len(body)), body)
    )


def unpack(frames: Sequence[bytes]) -> list[Record]:
    """Return the records of a packet.

    Raises
    ------
    ValueError
        The frames are not a packet.
    """
    records: list[Record] = []
    head, at, used = frames[0], 0, 1
    try:
        while at < len(head):
            kind, end, what, length = HEADER.unpack_from(head, at)
            at += HEADER_SIZE
            if length <= INLINE:
                body = head[at : at + length]
                at += length
            else:
                pieces = -(-length // PIECE)
                body = b"".join(frames[used : used + pieces])
                used += pieces
            if len(body) != length:
                raise ValueError(f"a body of {len(body)} bytes that should have {length}")
            records.append((kind, end, what, body))
    except struct.error as error:
        raise ValueError(f"not a packet: {error}") from error
    return records


def encode_result(result: JobResult) -> bytes:
    """Serialize how a job ended: as JSON, or plain success as its two times, or as nothing without times."""
    if result != _COMPLETED:
        return json.dumps(asdict(result)).encode()
    if result.t_start is None or result.t_end is None:
        return b""
    return _TIMES.pack(result.t_start, result.t_end)


def decode_result(body: bytes) -> JobResult:
    """Deserialize the output of `encode_result`."""
    if not body:
        return _COMPLETED
    if len(body) == _TIMES.size:  # JSON is longer
        t_start, t_end = _TIMES.unpack(body)
        return replace(_COMPLETED, t_start=t_start, t_end=t_end)
    fields = json.loads(body)
    return JobResult(**{**fields, "status": JobStatus(fields["status"])})


def encode_usage(usage: Usage) -> bytes:
    """Serialize what an instance has and what is free."""
    capacity = usage.capacity
    size = [capacity.nodes, capacity.cores, capacity.gpus]
    executors = [[mark, cores.held, list(cores.wanted.items())] for mark, cores in usage.executors.items()]
    return json.dumps([size, usage.free, list(usage.waiting.items()), usage.down, executors]).encode()


def decode_usage(body: bytes) -> Usage:
    """Deserialize the output of `encode_usage`."""
    size, free, waiting, down, executors = json.loads(body)
    return Usage(
        Capacity(*size),
        tuple((cores, gpus) for cores, gpus in free),
        dict(waiting),
        down,
        executors={mark: WorkerCores(held, dict(wanted)) for mark, held, wanted in executors},
    )
