"""A Flux instance: attached to, or started and owned by us. The only module that imports ``flux``.

Connection and completion each hold a handle of their own, because a Flux handle belongs to one
thread. The completion's handle also carries the workers' channel: a dynamic service (RFC 12's
``service.add``), to which a worker's first message is a streaming request, whose responses are our
messages to that worker, and every further message is a request without a response.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import (
    CHANNEL_VARIABLE,
    Capacity,
    ChannelAddress,
    Event,
    JobEnded,
    JobId,
    JobRequest,
    JobResult,
    JobStatus,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
)
from parsl_flux_bulk.instances.flux.broker import Broker
from parsl_flux_bulk.instances.flux.cancel_guard import Guard
from parsl_flux_bulk.instances.flux.results import first_exit, read_output, read_result
from parsl_flux_bulk.protocol import variables

STDERR_TAIL_LINES = 20

_LOST = {
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ECONNREFUSED,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.EHOSTUNREACH,
}
_LOST_HINT = "its broker ended, or the allocation that it ran in is over"


class FluxInstance:
    """A Flux instance; made by :meth:`attach` or :meth:`own`."""

    def __init__(self, uri: str | None, *, own: bool, guarded: bool) -> None:
        self._uri = uri
        self._own = own
        self._guarded = guarded
        self._broker: Broker | None = None
        self._description = "Flux, not started yet"

    @classmethod
    def attach(cls, uri: str | None = None, *, guarded: bool = True) -> FluxInstance:
        """Use a running instance.

        Parameters
        ----------
        uri : str or None
            ``local://…`` or ``ssh://…`` as flux-uri(1) prints; None means the enclosing instance
            (``FLUX_URI``).
        guarded : bool
            Whether an executor's jobs in it need somebody to end them if we die; False for one that
            ends when we do.
        """
        return cls(uri, own=False, guarded=guarded)

    @classmethod
    def own(cls) -> FluxInstance:
        """Start an instance on this machine, which ends when we do, however we end."""
        return cls(None, own=True, guarded=False)

    @property
    def owned(self) -> bool:
        """Whether it is our own."""
        return self._own

    @property
    def description(self) -> str:
        return self._description

    @property
    def uri(self) -> str | None:
        """Where the instance is; None for the enclosing one, and before our own was started."""
        return self._uri

    def start(self) -> None:
        _import_flux()
        if self._own and self._broker is None:
            self._broker = Broker()
            self._uri = self._broker.uri
        try:
            handle = _open(self._uri)
        except OSError as error:
            where = self._uri or os.environ.get("FLUX_URI") or "the enclosing instance (FLUX_URI is not set)"
            raise InstanceUnavailable(
                f"cannot attach to Flux at {where}: {error.strerror or error}. Give the URI that "
                "`flux uri` or `echo $FLUX_URI` prints inside the instance, or run inside `flux alloc`."
            ) from error
        _refuse_guest(handle)
        capacity = _capacity(handle)
        self._description = (
            f"Flux {handle.attr_get('version')} at {self._uri or handle.attr_get('local-uri')}"
            f"{' (started by us)' if self._own else ''}: {capacity.nodes} node(s), "
            f"{capacity.cores} core(s), {capacity.gpus} GPU(s)"
        )

    def connect(self) -> FluxConnection:
        return FluxConnection(self._open())

    def completion(self, *, guarded: bool = True) -> FluxCompletion:
        # An instance of our own takes its jobs with it; in another's they need somebody to end them.
        return FluxCompletion(self._open(), guarded=guarded and self._guarded)

    def largest_job_id(self) -> JobId:
        """The largest id that the instance has given to a job, or goes on from; 0 if there is none."""
        return int(self._open().rpc("job-manager.getinfo", {}).get()["max_jobid"])

    def _open(self) -> Any:
        """Open one more handle, once it has been there."""
        try:
            return _open(self._uri)
        except OSError as error:
            raise InstanceLost(
                f"cannot reach Flux any more ({error.strerror or error}): {_LOST_HINT}"
            ) from error

    def job_name(self, job_id: JobId) -> str:
        from flux.job import JobID

        return str(JobID(job_id).f58)

    def close(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.stop()


class FluxConnection:
    """Submits and cancels over one handle; see :class:`~parsl_flux_bulk.instances.base.Connection`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        from flux.job import submit_async

        in_flight: list[Any] = []
        for request in requests:
            try:
                in_flight.append(
                    submit_async(
                        self._handle,
                        request.jobspec,
                        urgency=request.urgency,
                        waitable=True,
                        novalidate=request.trusted,
                    )
                )
            except (OSError, ValueError) as error:
                in_flight.append(_refusal(error))
        answers = [self._collect(future) for future in in_flight]
        if any(isinstance(answer, Refusal) for answer in answers):
            self._assert_there()
        return answers

    def _assert_there(self) -> None:
        """Raise InstanceLost if the instance is gone.

        A request that was under way as the broker died fails with whatever errno was set last, such as
        ENOENT, as if the instance had refused it.
        """
        try:
            self._handle.rpc("attr.get", {"name": "rank"}).get()
        except OSError as error:
            _raise_if_lost(error)

    def _collect(self, future: Any) -> JobId | Refusal:
        if isinstance(future, Refusal):
            return future
        try:
            return int(future.get_id())
        except OSError as error:
            return _refusal(error)

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        from flux.job import cancel_async

        in_flight = [cancel_async(self._handle, job_id, reason) for job_id in job_ids]
        for future in in_flight:
            try:
                future.get()
            except OSError as error:
                _raise_if_lost(error)

    def output(self, job_id: JobId) -> tuple[str, str]:
        from flux.job import job_info_lookup

        try:
            log = job_info_lookup(self._handle, job_id, keys=["guest.output"]).get()["guest.output"]
        except OSError as error:
            _raise_if_lost(error)
            return "", ""
        return read_output(log)

    def capacity(self) -> Capacity:
        try:
            return _capacity(self._handle)
        except OSError as error:
            _raise_if_lost(error)
            raise

    def close(self) -> None:
        self._handle = None


class FluxCompletion:
    """Hears how jobs end, and serves the channel; see :class:`~parsl_flux_bulk.instances.base.Completion`."""

    def __init__(self, handle: Any, *, guarded: bool) -> None:
        from flux.constants import FLUX_POLLIN
        from flux.core.inner import ffi, lib

        self._ffi, self._lib = ffi, lib
        self._handle = handle
        self._reactor = handle.get_reactor()
        self._events: list[Event] = []
        self._peers: dict[PeerId, Any] = {}
        self._service = ""
        self._guarded = guarded
        self._guard: Guard | None = None
        self._watchers: list[Any] = []
        self._waits: dict[JobId, Any] = {}
        self._woken = False
        self._expired = False
        # poll() has its own time-out, so that it costs no reactor timer unless one is asked for.
        self._timer = handle.timer_watcher_create(0.0, self._on_timer)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._wake_watcher = handle.fd_watcher_create(self._wake_read, self._on_wake, FLUX_POLLIN)
        self._wake_watcher.start()

    # -- jobs ---------------------------------------------------------------------------------

    def watch(self, job_id: JobId) -> None:
        from flux.job import wait_async

        self._waits[job_id] = wait_async(self._handle, job_id).then(self._on_wait, job_id)

    def _on_wait(self, future: Any, job_id: JobId) -> None:
        del self._waits[job_id]
        try:
            _, success, message = future.get_status()
        except OSError as error:
            # Somebody who waits for any job at all got the answer that was ours; the result stands.
            success, message = False, error.strerror or str(error)
        if success:
            self._end(job_id, JobResult(JobStatus.COMPLETED, exit_code=0))
            return
        from flux.job import result_async

        note = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
        self._waits[job_id] = result_async(self._handle, job_id).then(self._on_result, job_id, note)

    def _on_result(self, future: Any, job_id: JobId, note: str) -> None:
        try:
            result = read_result(future.get_dict(), note)
        except OSError:
            # Our own instance forgets finished jobs; what the wait said is then all there is.
            result = read_result({}, note)
        if result.ok or not result.started:
            del self._waits[job_id]
            self._end(job_id, result)
            return
        if result.signal is not None:
            lookup = _lookup(self._handle, job_id, "guest.exec.eventlog")
            self._waits[job_id] = lookup.then(self._on_exec, job_id, result)
        else:
            self._look_for_output(job_id, result)

    def _on_exec(self, future: Any, job_id: JobId, result: JobResult) -> None:
        try:
            exited = first_exit(future.get()["guest.exec.eventlog"])
        except OSError:
            exited = None
        if exited is not None and result.signal is not None and exited == 128 + result.signal:
            result = replace(result, exit_code=exited, signal=None)
        self._look_for_output(job_id, result)

    def _look_for_output(self, job_id: JobId, result: JobResult) -> None:
        lookup = _lookup(self._handle, job_id, "guest.output")
        self._waits[job_id] = lookup.then(self._on_output, job_id, result)

    def _on_output(self, future: Any, job_id: JobId, result: JobResult) -> None:
        del self._waits[job_id]
        try:
            _, stderr = read_output(future.get()["guest.output"])
        except OSError:
            stderr = ""
        tail = "\n".join(stderr.splitlines()[-STDERR_TAIL_LINES:])
        self._end(job_id, replace(result, stderr=tail))

    def _end(self, job_id: JobId, result: JobResult) -> None:
        self._events.append(JobEnded(job_id, result))

    # -- the loop -----------------------------------------------------------------------------

    def poll(self, timeout: float | None) -> list[Event]:
        if self._handle is None:
            raise InstanceLost("the connection to Flux is closed")
        run, reactor, lib = self._lib.flux_reactor_run, self._reactor, self._lib
        self._expired = False
        if timeout is not None and timeout > 0 and not self._events:
            self._timer.reset(after=timeout)
        flags = lib.FLUX_REACTOR_NOWAIT if timeout == 0 else lib.FLUX_REACTOR_ONCE
        while True:
            before = len(self._events)
            if run(reactor, flags) < 0:
                self._raise_lost()
            if timeout == 0 and len(self._events) == before:
                break
            # The reactor hands over one message a turn: take what else has arrived already.
            if len(self._events) > before:
                flags = lib.FLUX_REACTOR_NOWAIT
                if len(self._events) < 512:
                    continue
                break
            if self._events or self._woken or self._expired:
                break
        self._woken = False
        if timeout:
            self._timer.stop()
        events, self._events = self._events, []
        return events

    def _raise_lost(self) -> None:
        number = self._ffi.errno
        type(self._handle).raise_if_exception()
        why = f" ({os.strerror(number)})" if number else ""
        raise InstanceLost(f"lost the connection to Flux{why}: {_LOST_HINT}")

    def _on_timer(self, *_: Any) -> None:
        self._expired = True

    def _on_wake(self, *_: Any) -> None:
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        self._woken = True

    def wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except (BlockingIOError, OSError):
            pass  # full: it is awake already; closed: nobody sleeps

    # -- the channel --------------------------------------------------------------------------

    def channel(self) -> ChannelAddress:
        from flux.constants import FLUX_MSGTYPE_REQUEST

        if not self._service:
            service = f"flux-bulk-{uuid.uuid4().hex[:16]}"
            self._handle.service_register(service).get()
            self._service = service
            for verb, callback in (
                ("open", self._on_open),
                ("send", self._on_send),
                ("ping", self._on_ping),
                ("disconnect", self._on_disconnect),
            ):
                watcher = self._handle.msg_watcher_create(callback, FLUX_MSGTYPE_REQUEST, f"{service}.{verb}")
                watcher.start()
                self._watchers.append(watcher)
        address = f"flux:{self._handle.get_rank()}:{self._service}"
        if self._guarded and self._guard is None:
            self._guard = Guard(self._handle.attr_get("local-uri"), address)
        environment = {CHANNEL_VARIABLE: address}
        library = _libflux_path()
        if library:
            environment[variables.LIBFLUX] = library
        return ChannelAddress(environment)

    def send(self, peer: PeerId, body: bytes) -> None:
        message = self._peers.get(peer)
        if message is not None:
            self._lib.flux_respond_raw(
                self._handle.handle, message.handle, self._ffi.from_buffer(body), len(body)
            )

    def _on_open(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        peer = self._sender(message)
        self._peers[peer] = message
        self._events.append(PeerMessage(peer, self._payload(message)))

    def _on_send(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        peer = self._sender(message)
        if peer in self._peers:
            self._events.append(PeerMessage(peer, self._payload(message)))

    def _on_ping(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        self._lib.flux_respond_raw(self._handle.handle, message.handle, self._ffi.NULL, 0)

    def _on_disconnect(self, _handle: Any, _watcher: Any, message: Any, _args: Any) -> None:
        peer = self._sender(message)
        if self._peers.pop(peer, None) is not None:
            self._events.append(PeerLost(peer))

    def _sender(self, message: Any) -> PeerId:
        return bytes(self._ffi.string(self._lib.flux_msg_route_first(message.handle)))

    def _payload(self, message: Any) -> bytes:
        data, size = self._ffi.new("const void *[1]"), self._ffi.new("size_t[1]")
        if self._lib.flux_msg_get_payload(message.handle, data, size) < 0:
            return b""
        return bytes(self._ffi.buffer(data[0], size[0]))

    def close(self) -> None:
        if self._handle is None:
            return
        if self._guard is not None:
            self._guard.dismiss()
        for message in self._peers.values():
            self._lib.flux_respond_error(self._handle.handle, message.handle, errno.ENODATA, self._ffi.NULL)
        self._peers.clear()
        for watcher in (*self._watchers, self._wake_watcher, self._timer):
            watcher.stop()
            watcher.destroy()
        self._watchers.clear()
        for future in self._waits.values():
            future.stop()
        self._waits.clear()
        self._handle = None
        os.close(self._wake_read)
        write, self._wake_write = self._wake_write, -1
        os.close(write)


# -- helpers ----------------------------------------------------------------------------------


def _import_flux() -> None:
    try:
        import flux.job  # noqa: F401
    except ImportError as error:
        raise InstanceUnavailable(
            f"Flux's Python bindings cannot be imported ({error}). Install the ones of the same version "
            "as flux-core: pip install 'parsl-flux-bulk[flux]' 'flux-python==VERSION' (see `flux version`)."
        ) from error


def _open(uri: str | None) -> Any:
    import flux

    return flux.Flux(uri) if uri else flux.Flux()


def _refuse_guest(handle: Any) -> None:
    owner = int(handle.attr_get("security.owner"))
    if owner != os.getuid():
        raise InstanceUnavailable(
            f"this Flux instance belongs to user id {owner}, and guests (you are {os.getuid()}) may not "
            "submit waitable jobs. Get an instance of your own: run under `flux alloc` or `flux batch`."
        )


def _capacity(handle: Any) -> Capacity:
    from flux.resource import resource_list

    listed = resource_list(handle).get()
    up = listed.up
    return Capacity(nodes=up.nnodes, cores=up.ncores, gpus=up.ngpus)


def _raise_if_lost(error: OSError) -> None:
    if error.errno in _LOST:
        raise InstanceLost(
            f"lost the connection to Flux ({error.strerror or error}): {_LOST_HINT}"
        ) from error


def _refusal(error: OSError | ValueError) -> Refusal:
    if isinstance(error, OSError):
        _raise_if_lost(error)
        return Refusal(error.strerror or str(error))
    return Refusal(str(error))


def _lookup(handle: Any, job_id: JobId, key: str) -> Any:
    from flux.job import job_info_lookup

    return job_info_lookup(handle, job_id, keys=[key])


def _libflux_path() -> str:
    """Where our own libflux-core was loaded from, for workers whose linker would not find it."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                if "/libflux-core.so" in line:
                    return line.split(maxsplit=5)[5].strip()
    except OSError:
        pass
    return ""


def cancel_jobs_of(uri: str, address: str) -> None:
    """Cancel every active job of the executor whose channel has this address.

    Runs in the guard, after the executor's process is gone. Which jobs were its is read from their
    jobspecs, since one may have been submitted in the instant before the end.
    """
    from flux.job import JobList, cancel_async, job_kvs_lookup

    handle = _open(uri)
    for _ in range(2):  # once more, for a request to submit that was on its way
        for job in JobList(handle, filters=["active"], max_entries=0).jobs():
            found = job_kvs_lookup(handle, job.id, keys=["jobspec"], original=True)
            system = found["jobspec"]["attributes"]["system"] if found else {}
            if system.get("environment", {}).get(CHANNEL_VARIABLE) == address:
                cancel_async(handle, job.id, "the executor's process was killed").wait_for()
        time.sleep(1)
