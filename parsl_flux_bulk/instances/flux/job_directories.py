"""Remove the empty KVS directories that Flux leaves behind when it purges inactive jobs.

The KVS keeps a job in ``job.0000.TTTT.GGSS.…`` (RFC 19, dothex), where a directory ``job.0000.TTTT`` is of a
quarter of a second. A purge unlinks the job only, so ``job.0000`` grows with the time in which jobs are
submitted. Each new job makes new versions of ``job.0000``, all of which the KVS caches for 10 s.

::

    event job-purge-inactive ──> kvs.lookup of each directory that is old enough ──> all empty: unlink
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.instances.flux.handle import drop_future

logger = logging.getLogger(__name__)

MARGIN = 40
"""Directories, of 256 ms each, between a directory that is removed and the newest: no job can enter it."""

_EVENT = "job-purge-inactive"
_PERIOD = 1 << 32  # job ids in a directory
_READDIR = 1  # FLUX_KVS_READDIR in kvs.h
_EMPTY_OBJECT = b'{"data":{},"type":"dir","ver":1}'  # RFC 11
_EMPTY = {f"{name}-{hashlib.new(name, _EMPTY_OBJECT).hexdigest()}" for name in ("sha1", "sha256")}


class JobDirectories:
    """Removes directories for as long as the handle's reactor runs.

    Parameters
    ----------
    handle : flux.Flux
        Of an instance that ends with this process: directories of other instances stay.
    """

    def __init__(self, handle: Any) -> None:
        from flux.constants import FLUX_MSGTYPE_EVENT

        self._handle = handle
        self._purged: set[int] = set()  # numbers of directories that a purge has changed
        self._newest = 0
        self._requests: dict[int, Any] = {}
        handle.event_subscribe(_EVENT)
        self._watcher = handle.msg_watcher_create(self._on_purge, FLUX_MSGTYPE_EVENT, _EVENT)
        self._watcher.start()

    def close(self) -> None:
        """Remove nothing any more."""
        self._watcher.stop()
        self._watcher.destroy()
        for request in self._requests.values():
            drop_future(request)

    def _on_purge(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        changed = {job_id // _PERIOD for job_id in message.payload["jobs"]}
        self._purged |= changed
        self._newest = max(self._newest, *changed)
        for number in self._purged - self._requests.keys():
            if number + MARGIN < self._newest:
                key = {"key": directory_of(number * _PERIOD), "namespace": "primary", "flags": _READDIR}
                self._requests[number] = self._handle.rpc("kvs.lookup", key).then(self._on_listed, number)

    def _on_listed(self, future: Any, number: int) -> None:
        del self._requests[number]
        try:
            entries = future.get()["val"]["data"].values()
        except OSError:
            self._purged.discard(number)  # another program has removed it
            return
        if all(_EMPTY.issuperset(entry["data"]) for entry in entries):
            self._unlink(number)

    def _unlink(self, number: int) -> None:
        from flux.kvs import KVSTxn

        transaction = KVSTxn(self._handle, namespace="primary")
        transaction.unlink(directory_of(number * _PERIOD))
        self._requests[number] = transaction.commit_async().then(self._on_unlinked, number)

    def _on_unlinked(self, future: Any, number: int) -> None:
        del self._requests[number]
        self._purged.discard(number)
        try:
            future.get()
        except OSError as error:
            logger.info("KVS directory not removed key=%s: %s", directory_of(number * _PERIOD), error)


def directory_of(job_id: JobId) -> str:
    """Return the KVS directory of a job and of those submitted in the same quarter of a second."""
    dothex = f"{job_id:016x}"
    return f"job.{dothex[:4]}.{dothex[4:8]}"
