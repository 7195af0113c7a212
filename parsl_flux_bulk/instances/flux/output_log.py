"""Read the end of what the instance keeps of a job's output, however much that is.

The output eventlog is a value in the KVS, stored as a list of blobs (RFC 10, RFC 11), of which only the last
are loaded. The lookup of the whole eventlog would take minutes and gigabytes after a million lines.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from parsl_flux_bulk.instances.base import JobId

END_BYTES = 256 << 10
"""Bytes to read, more or less: blobs are read as a whole."""

_TREEOBJ = 16  # FLUX_KVS_TREEOBJ in kvs.h
_ANY = 0xFFFFFFFF  # FLUX_NODEID_ANY


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
        from flux.job import JobID

        self._handle = handle
        self._job_id = job_id
        self._futures = futures
        self._done = done
        self._blobs: list[str] = []
        self._end = b""
        key = {"key": f"{JobID(job_id).kvs}.guest.output", "namespace": "primary", "flags": _TREEOBJ}
        futures[job_id] = handle.rpc("kvs.lookup", key).then(self._on_tree)

    def _on_tree(self, future: Any) -> None:
        try:
            tree = future.get()["val"]
        except (OSError, KeyError):
            self._done(b"")
            return
        if tree["type"] == "val":
            self._done(base64.b64decode(tree["data"])[-END_BYTES:])
            return
        self._blobs = tree["data"] if tree["type"] == "valref" else []
        self._load()

    def _load(self) -> None:
        if not self._blobs or len(self._end) >= END_BYTES:
            self._done(self._end[-END_BYTES:])
            return
        digest = bytes.fromhex(self._blobs.pop().partition("-")[2])
        self._futures[self._job_id] = _load_blob(self._handle, digest).then(self._on_blob)

    def _on_blob(self, future: Any) -> None:
        try:
            self._end = _payload(future) + self._end
        except OSError:
            self._blobs.clear()
        self._load()


def _load_blob(handle: Any, digest: bytes) -> Any:
    from flux.core.inner import raw
    from flux.future import Future
    from flux.rpc import RPC

    request = raw.flux_rpc_raw(handle.handle, b"content.load", digest, len(digest), _ANY, 0)
    return Future(request, prefixes=["flux_rpc_", "flux_future_"], pimpl_t=RPC.RPCInnerWrapper)


def _payload(future: Any) -> bytes:
    from flux.core.inner import ffi

    data, size = ffi.new("const void *[1]"), ffi.new("size_t[1]")
    future.pimpl.flux_rpc_get_raw(data, size)
    return bytes(ffi.buffer(data[0], size[0]))
