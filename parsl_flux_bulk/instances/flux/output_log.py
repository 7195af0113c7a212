"""Read parts of what the instance keeps of a job's output, however much that is.

The output eventlog is a value in the KVS, stored as a list of blobs (RFC 10, RFC 11), which only grows, and
of which some are loaded: those after a position, or the last. Each holds whole events, some MB of them if the
job prints much. The lookup of the whole eventlog would take minutes and gigabytes after a million lines.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, TypeAlias

from parsl_flux_bulk.instances.base import JobId

END_BYTES = 256 << 10
"""Bytes to read, more or less: blobs are read as a whole."""

Blob: TypeAlias = bytes | str
"""The content of a blob, or its reference, of which :func:`load` asks for the content."""

_TREEOBJ = 16  # FLUX_KVS_TREEOBJ in kvs.h
_ANY = 0xFFFFFFFF  # FLUX_NODEID_ANY


def look_up(handle: Any, job_id: JobId) -> Any:
    """Request the blobs of a job's output eventlog; return the future for :func:`blobs`."""
    from flux.job import JobID

    key = {"key": f"{JobID(job_id).kvs}.guest.output", "namespace": "primary", "flags": _TREEOBJ}
    return handle.rpc("kvs.lookup", key)


def blobs(future: Any) -> list[Blob]:
    """Return the blobs from an answer; raise OSError if there is no eventlog."""
    tree = future.get()["val"]
    if tree["type"] == "val":
        return [base64.b64decode(tree["data"])]
    return list(tree["data"]) if tree["type"] == "valref" else []


def load(handle: Any, reference: str) -> Any:
    """Request the content of a blob; return the future for :func:`content`."""
    from flux.core.inner import raw
    from flux.future import Future
    from flux.rpc import RPC

    digest = bytes.fromhex(reference.partition("-")[2])
    request = raw.flux_rpc_raw(handle.handle, b"content.load", digest, len(digest), _ANY, 0)
    return Future(request, prefixes=["flux_rpc_", "flux_future_"], pimpl_t=RPC.RPCInnerWrapper)


def content(future: Any) -> bytes:
    """Return the content of a blob from an answer; raise OSError if it cannot be loaded."""
    from flux.core.inner import ffi

    data, size = ffi.new("const void *[1]"), ffi.new("size_t[1]")
    future.pimpl.flux_rpc_get_raw(data, size)
    return bytes(ffi.buffer(data[0], size[0]))


class EndOfOutput:
    """One reading; the requests run in the handle's reactor.

    Parameters
    ----------
    handle : flux.Flux
    job_id : int
        A job that has ended.
    futures : dict
        Gets the request that is in flight, by job id.
    done : callable
        Called with the end of the eventlog; with b"" if there is none.
    """

    def __init__(
        self, handle: Any, job_id: JobId, futures: dict[JobId, Any], done: Callable[[bytes], None]
    ) -> None:
        self._handle = handle
        self._job_id = job_id
        self._futures = futures
        self._done = done
        self._blobs: list[Blob] = []
        self._end = b""
        futures[job_id] = look_up(handle, job_id).then(self._on_blobs)

    def _on_blobs(self, future: Any) -> None:
        try:
            self._blobs = blobs(future)
        except (OSError, KeyError):
            pass
        self._load()

    def _load(self) -> None:
        while self._blobs and len(self._end) < END_BYTES:
            blob = self._blobs.pop()
            if isinstance(blob, str):
                self._futures[self._job_id] = load(self._handle, blob).then(self._on_blob)
                return
            self._end = blob + self._end
        self._done(self._end[-END_BYTES:])

    def _on_blob(self, future: Any) -> None:
        try:
            self._end = content(future) + self._end
        except OSError:
            self._blobs.clear()
        self._load()
