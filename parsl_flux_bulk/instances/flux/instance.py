"""A Flux instance: attached to, or started and owned by this process.

Connection and completion each hold their own handle, because a Flux handle belongs to one thread.
"""

from __future__ import annotations

import gc
import os
import uuid
from typing import Any

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.instances.flux.cancel_jobs_when_killed import CancelGuard
from parsl_flux_bulk.instances.flux.completion import FluxCompletion
from parsl_flux_bulk.instances.flux.connection import FluxConnection
from parsl_flux_bulk.instances.flux.handle import LOST_HINT, import_bindings, open_handle
from parsl_flux_bulk.instances.flux.own_broker import Broker
from parsl_flux_bulk.instances.flux.probe import Probe, ask
from parsl_flux_bulk.instances.flux.shell_options import OutputFiles

ANSWER_TIMEOUT = 60.0
"""Seconds within which an instance must answer; with an ``ssh://`` URI, `ssh` connects first."""


class FluxInstance:
    """A Flux instance; made by :meth:`attach` or :meth:`own`.

    Attributes
    ----------
    owned : bool
        Whether this process starts and ends the instance.
    uri : str or None
        Where the instance is; None for the enclosing one, and for an owned one before `start`.
    description : str
    record_times : bool
        Whether results have the times of jobs; set before `completion`. Costs two messages a job.
    """

    def __init__(self, uri: str | None, *, owned: bool) -> None:
        self.uri = uri
        self.owned = owned
        self.description = "Flux, not started yet"
        self.record_times = False
        self._guard: CancelGuard | None = None
        self._mark = ""
        self._broker: Broker | None = None
        self._files: dict[JobId, OutputFiles] = {}  # of the jobs that have not ended

    @classmethod
    def attach(cls, uri: str | None = None) -> FluxInstance:
        """Use a running instance.

        Parameters
        ----------
        uri : str or None
            ``local://…`` or ``ssh://…`` as flux-uri(1) prints; None means the enclosing instance
            (``FLUX_URI``).
        """
        return cls(uri, owned=False)

    @classmethod
    def own(cls) -> FluxInstance:
        """Start an instance on this machine, which ends with this process, also if that is killed."""
        return cls(None, owned=True)

    def start(self) -> None:
        import_bindings()
        if self.owned and self._broker is None:
            self._broker = Broker()
            self.uri = self._broker.uri
        about = self._reach()
        capacity = about.capacity
        started = " (started for this run)" if self.owned else ""
        self.description = (
            f"Flux {about.version} at {self.uri or about.uri}{started}: "
            f"{capacity.nodes} node(s), {capacity.cores} core(s), {capacity.gpus} GPU(s)"
        )
        if not self.owned and self._guard is None:
            self._mark = uuid.uuid4().hex
            self._guard = CancelGuard(self.uri, self._mark)

    def _reach(self) -> Probe:
        """Return what the instance says, if it answers in time and this user owns it."""
        where = self.uri or os.environ.get("FLUX_URI") or "the enclosing instance (FLUX_URI is not set)"
        try:
            answer = ask(self.uri, ANSWER_TIMEOUT)
        except OSError as error:
            raise InstanceUnavailable(
                f"cannot attach to Flux at {where}: {error.strerror or error}. Give the URI that "
                "`flux uri` or `echo $FLUX_URI` prints inside the instance, or run inside `flux alloc`."
            ) from error
        if answer is None:
            raise InstanceUnavailable(
                f"Flux at {where} did not answer within {ANSWER_TIMEOUT:g} s: its broker is stopped or hung. "
                f"`FLUX_URI={where} flux uptime` tells whether it answers again."
            )
        if answer.owner != os.getuid():
            raise InstanceUnavailable(
                f"this Flux instance belongs to user id {answer.owner}, and guests (you are {os.getuid()}) "
                "may not submit waitable jobs. Get an instance of your own: run under `flux alloc` or "
                "`flux batch`."
            )
        return answer

    def connect(self, *, guarded: bool = True) -> FluxConnection:
        """Open a connection; with `guarded` False, its jobs end by themselves if this process is killed."""
        spool = self._broker.spool if self._broker else ""
        return FluxConnection(self._open(), self._files, spool, self._mark if guarded else "")

    def completion(self) -> FluxCompletion:
        return FluxCompletion(self._open(), self._files, private=self.owned, record_times=self.record_times)

    def _open(self) -> Any:
        """Open one more handle to an instance that has been reached before."""
        try:
            return open_handle(self.uri)
        except OSError as error:
            raise InstanceLost(
                f"cannot reach Flux any more ({error.strerror or error}): {LOST_HINT}"
            ) from error

    def job_name(self, job_id: JobId) -> str:
        from flux.job import JobID

        return str(JobID(job_id).f58)

    def close(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.dismiss()
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.stop()
        # The bindings' handles, watchers and futures refer to each other. Only the collector closes their
        # descriptors, some seven a handle, and it may not run for long in a script that does little else.
        gc.collect()
