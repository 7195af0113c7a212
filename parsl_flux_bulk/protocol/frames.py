"""Encode and decode the frames that the executor and the processes of its jobs exchange.

A *message*, one unit of the channel, holds one or more frames end to end, so that many small ones travel
together. A *frame* is a header of 21 bytes, little-endian, and a payload::

    u8 kind | u32 slot | u64 id | u64 length of the payload | payload

========  ===========  ====================================================================
kind      direction    slot, id, payload
========  ===========  ====================================================================
HELLO     to executor  number of workers (0: a rank of a task job), job token, JSON
                       {rank, size, host, pid, node, python, block, cpus, memory},
                       memory in bytes; always first
OUTCOME   to executor  slot, task id, two f64 and the outcome: when the task started and ended, in
                       seconds since the epoch, by the clock of its host
RETURNED  to executor  slot, task id: the task has not started and will not start here
DIED      to executor  slot, id of the task that was running (0: none), JSON {exit_code, signal,
                       stderr}; after the worker's OUTCOMEs, before its RETURNEDs
SETUP     to process   JSON {sys_path, tasks_per_worker, debug}; always first
FUNCTION  to process   function id, serialized function
FORGET    to process   function id: no later task names this function
TASK      to process   slot, task id, u64 function id and the serialized call
RECALL    to process   slot, task id (0: all tasks that have not started): answered with RETURNED
                       for each task that has not started
KILL      to process   slot, task id (0: any task): kill the worker if it runs this task; answered
                       with DIED, unless the task has ended
RETIRE    to process   exit
LONE      to worker    as TASK, from the executor on a lane (:mod:`.packets`)
OPEN      to worker    the executor has taken the lane, and reads from it
========  ===========  ====================================================================

Ids are positive. Every process of a job imports this module, so it imports almost nothing.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

HELLO = 1
OUTCOME = 2
RETURNED = 3
DIED = 4

SETUP = 16
FUNCTION = 17
FORGET = 18
TASK = 19
RECALL = 20
KILL = 21
RETIRE = 22
LONE = 23
OPEN = 24

HEADER = struct.Struct("<BIQQ")
HEADER_SIZE = HEADER.size
ID = slice(5, 13)
"""Bytes of a header that hold the id."""

FUNCTION_ID = struct.Struct("<Q")
FUNCTION_ID_SIZE = FUNCTION_ID.size
CALL_START = HEADER_SIZE + FUNCTION_ID_SIZE
"""Offset of the serialized call in a TASK frame."""

TIMES = struct.Struct("<dd")
TIMES_SIZE = TIMES.size
"""Offset of the outcome in the payload of an OUTCOME."""

LANE_LIMIT = 1 << 15
"""Bytes of a call or of an outcome that goes by a lane: it fits in a packet, and is read in one piece."""

MAX_PAYLOAD = 2**31 - 2**16
"""Bytes: Flux counts the bytes of a response in a C int; two headers and an outcome's times must fit, too."""


class FrameError(ValueError):
    """Bytes that are not a message, or a frame in the wrong place."""


def too_long(what: str, length: int) -> str:
    """Return the error message for a payload of more than `MAX_PAYLOAD` bytes."""
    return f"a {what} of {length} bytes is too long to send, at most {MAX_PAYLOAD} are possible: use a file"


def encode(kind: int, slot: int = 0, id: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame.

    Raises
    ------
    FrameError
        The payload is longer than `MAX_PAYLOAD`.
    """
    length = len(payload)
    if length > MAX_PAYLOAD:
        raise FrameError(too_long("payload", length))
    return HEADER.pack(kind, slot, id, length) + payload


def encode_task(slot: int, task_id: int, function_id: int, call: bytes, kind: int = TASK) -> bytes:
    """Return a TASK frame, or a LONE one.

    Raises
    ------
    FrameError
        The call is longer than `MAX_PAYLOAD` allows.
    """
    length = FUNCTION_ID_SIZE + len(call)
    if length > MAX_PAYLOAD:
        raise FrameError(too_long("call", length))
    return b"".join((HEADER.pack(kind, slot, task_id, length), FUNCTION_ID.pack(function_id), call))


def encode_outcome(slot: int, task_id: int, started: float, ended: float, outcome: bytes) -> bytes:
    """Return an OUTCOME frame; of the outcome, at most `MAX_PAYLOAD` bytes fit."""
    header = HEADER.pack(OUTCOME, slot, task_id, TIMES_SIZE + len(outcome))
    return b"".join((header, TIMES.pack(started, ended), outcome))


def encode_json(kind: int, slot: int, id: int, payload: dict[str, Any]) -> bytes:
    """Return one frame with a JSON payload."""
    import json

    return encode(kind, slot, id, json.dumps(payload).encode())


def decode_json(payload: bytes | memoryview) -> dict[str, Any]:
    """Return the JSON object in a payload; raise FrameError if the payload is not one."""
    import json

    try:
        value = json.loads(bytes(payload))
    except ValueError as error:
        raise FrameError(f"payload is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError(f"payload is not a JSON object but {type(value).__name__}")
    return value


def decode(message: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Yield the frames of a message as (kind, slot, id, payload); payloads are views, not copies."""
    for kind, slot, id, frame in split(message):
        yield kind, slot, id, frame[HEADER_SIZE:]


def split(message: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Yield the frames of a message as (kind, slot, id, whole frame), to pass them on.

    Raises
    ------
    FrameError
        The message ends within a frame.
    """
    view = memoryview(message)
    size = len(view)
    unpack = HEADER.unpack_from
    start = 0
    while start < size:
        if size - start < HEADER_SIZE:
            raise FrameError(f"message of {size} bytes: {size - start} bytes after the last complete frame")
        kind, slot, id, length = unpack(view, start)
        end = start + HEADER_SIZE + length
        if end > size:
            raise FrameError(f"message of {size} bytes: {end - size} bytes missing in a frame of kind {kind}")
        yield kind, slot, id, view[start:end]
        start = end
