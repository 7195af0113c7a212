"""The format of what the executor and the processes inside its jobs tell each other.

A *message* is what the channel carries as one unit: one frame or more, end to end, so that many small
things travel together. A *frame* is a header of 21 bytes, little-endian, and a payload::

    u8 kind | u32 slot | u64 id | u64 length of the payload | payload

========  =========  ======================================================================
kind      direction  slot, id, payload
========  =========  ======================================================================
HELLO     to exec.   number of worker slots (0: a rank of a task job), job token, JSON
                     {rank, size, host, pid, node}; always the first
OUTCOME   to exec.   slot, task id, outcome
RETURNED  to exec.   slot, task id: given back, certainly not started
DIED      to exec.   slot, id of the task that was running (0: none), JSON {exit_code, signal,
                     stderr}; after the child's outcomes, before its RETURNED frames
SETUP     to peer    JSON {sys_path, tasks_per_worker}; always the first
FUNCTION  to peer    function id, serialised function
FORGET    to peer    function id: no task will name it again
TASK      to peer    slot, task id, u64 function id and the serialised call
RECALL    to peer    slot, task id (0: all that the slot has not started): answered with RETURNED
                     unless it has started
KILL      to peer    slot, task id (0: whatever runs): end that child, answered with DIED, unless
                     the task has ended already
RETIRE    to peer    end
========  =========  ======================================================================

Ids are positive. This module is imported by every process of a job: it imports next to nothing.
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

HEADER = struct.Struct("<BIQQ")
HEADER_SIZE = HEADER.size
FUNCTION_ID = struct.Struct("<Q")
FUNCTION_ID_SIZE = FUNCTION_ID.size

MAX_PAYLOAD = 2**31 - 2**16
"""Bytes. Flux counts the bytes of a response in a C int, and a header or two must fit as well."""


class FrameError(ValueError):
    """Bytes that are no message, or a frame in a place where it cannot be."""


def too_long(what: str, length: int) -> str:
    """Return the sentence about a payload of more than `MAX_PAYLOAD` bytes."""
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


def encode_task(slot: int, task_id: int, function_id: int, call: bytes) -> bytes:
    """Return a TASK frame.

    Raises
    ------
    FrameError
        The call is longer than `MAX_PAYLOAD` allows.
    """
    length = FUNCTION_ID_SIZE + len(call)
    if length > MAX_PAYLOAD:
        raise FrameError(too_long("call", length))
    return b"".join((HEADER.pack(TASK, slot, task_id, length), FUNCTION_ID.pack(function_id), call))


def encode_json(kind: int, slot: int, id: int, payload: dict[str, Any]) -> bytes:
    """Return one frame with a JSON payload."""
    import json

    return encode(kind, slot, id, json.dumps(payload).encode())


def decode_json(payload: bytes | memoryview) -> dict[str, Any]:
    """Return the JSON object in a payload; FrameError if there is none."""
    import json

    try:
        value = json.loads(bytes(payload))
    except ValueError as error:
        raise FrameError(f"payload is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError(f"payload is not a JSON object but {type(value).__name__}")
    return value


def frames(message: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Yield the frames of a message as (kind, slot, id, payload); payloads are views, not copies.

    Raises
    ------
    FrameError
        The message does not end where a frame does.
    """
    for kind, slot, id, frame in raw_frames(message):
        yield kind, slot, id, frame[HEADER_SIZE:]


def raw_frames(message: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Yield the frames of a message as (kind, slot, id, whole frame), for those who pass frames on.

    Raises
    ------
    FrameError
        The message does not end where a frame does.
    """
    view = memoryview(message)
    size = len(view)
    unpack = HEADER.unpack_from
    start = 0
    while start < size:
        if size - start < HEADER_SIZE:
            raise FrameError(f"{size - start} bytes after the last whole frame of a message of {size} bytes")
        kind, slot, id, length = unpack(view, start)
        end = start + HEADER_SIZE + length
        if end > size:
            raise FrameError(f"a frame of kind {kind} is {end - size} bytes longer than its message")
        yield kind, slot, id, view[start:end]
        start = end
