"""The embedded instance: jobspecs as processes on this machine, without Flux.

A laptop, or a login node without Flux, runs the same pipeline with it. Jobs get whole cores, first
come, first served within one urgency, and are pinned to them, unless another embedded instance of
the user has claimed them (:mod:`.core_claims`); a request that this machine cannot satisfy is
refused in words. A core is a physical one with all its hardware threads, of those CPUs that this
process may use.

This module is the user's end. Queue and processes belong to a small separate process, the server
(:mod:`.server`), which ends, and kills every process of every job, when this process ends. The
workers' channel is served here, in the completion thread (:mod:`.socket_channel`).

Differences from Flux: PMI-1 is the only PMI (:mod:`.pmi`), for jobs of several tasks; no queues,
dependencies or properties, ids are small decimal numbers, and what a task leaves behind in the
background is killed when its job ends. Linux only, as Flux.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from parsl_flux_bulk.errors import InstanceLost, JobspecError, OutputUnavailable
from parsl_flux_bulk.instances.base import (
    EMBEDDED_IN_FLIGHT,
    Capacity,
    ChannelAddress,
    Event,
    JobEnded,
    JobId,
    JobRequest,
    JobResult,
    JobStatus,
    Output,
    PeerId,
    Position,
    Refusal,
)
from parsl_flux_bulk.instances.framed_socket import LONGEST_WAIT, FramedSocket
from parsl_flux_bulk.instances.local.jobspec import PlanWriter, Unsatisfiable
from parsl_flux_bulk.instances.local.kept_output import spool_paths
from parsl_flux_bulk.instances.local.machine import Machine, gpu_names
from parsl_flux_bulk.instances.local.server_process import ServerProcess
from parsl_flux_bulk.instances.output_parts import read_files
from parsl_flux_bulk.instances.socket_channel import SocketChannel
from parsl_flux_bulk.protocol import variables
from parsl_flux_bulk.protocol.framing import frame
from parsl_flux_bulk.protocol.wakeup import Wakeup
from parsl_flux_bulk.worker.pinning import physical_cores

logger = logging.getLogger(__name__)


class LocalInstance:
    """This machine as a place where jobs run.

    Parameters
    ----------
    cores : int, optional
        How many cores jobs may use; by default all those that this process may use.
    working_dir : str or os.PathLike, optional
        Where jobs run whose jobspec names no directory; by default the current one at `start`.
    gpus : int
        How many GPUs jobs may request: the first of those in ``CUDA_VISIBLE_DEVICES``, or 0, 1, …
        where that is not set. With 0, the default, a job that requests a GPU is refused, and that
        variable is left alone.
    oversubscribe : bool
        Allow more `cores` than the machine has; several then share one.
    first_id : int
        Id of the first job.
    flux_uri : str
        ``FLUX_URI`` in jobs; "" for none.
    """

    def __init__(
        self,
        cores: int | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        *,
        gpus: int = 0,
        oversubscribe: bool = False,
        first_id: int = 1,
        flux_uri: str = "",
    ) -> None:
        usable = physical_cores()
        if cores is not None and (cores < 1 or (cores > len(usable) and not oversubscribe)):
            raise ValueError(
                f"cores={cores}: this process may use {len(usable)}; "
                f"give 1 to {len(usable)}, or oversubscribe=True"
            )
        if gpus < 0:
            raise ValueError(f"gpus={gpus}: give 0 or more")
        self._usable = usable
        self._cores = cores or len(usable)
        self._gpus = gpus
        self._first_id = first_id
        self._flux_uri = flux_uri
        self._working_dir = working_dir
        self._server: ServerProcess | None = None
        self._ready = False
        self._channels = itertools.count()
        self._lock = threading.Lock()

    @property
    def gpus(self) -> int:
        """Number of GPUs that jobs may request."""
        return self._gpus

    @property
    def description(self) -> str:
        """One line for people."""
        gpus = f" and {self._gpus} GPU{'s' * (self._gpus != 1)}" if self._gpus else ""
        count = self._cores
        return f"embedded instance: {count} core{'s' * (count != 1)}{gpus} of {socket.gethostname()}"

    def launch(self) -> None:
        """Start the server's process, and do not wait until it is ready; raises as `start`."""
        with self._lock:
            if self._server is None:
                working_dir = os.path.abspath(self._working_dir or os.getcwd())
                machine = Machine(socket.gethostname(), self._cores, self._gpus, working_dir)
                self._server = ServerProcess(machine, self._usable, gpu_names(self._gpus), self._first_id)
                self._ready = False

    def start(self) -> None:
        """Start the server.

        Raises
        ------
        InstanceUnavailable
            The server did not start; says why.
        """
        self.launch()
        with self._lock:
            if self._ready or self._server is None:
                return
            try:
                pinned = self._server.wait_ready()
            except BaseException:
                self._server = None
                raise
            self._ready = True
        if pinned < self._cores:
            logger.info(
                "cores shared pinned=%d of %d: other embedded instances on this host have the rest; "
                "jobs there are not pinned",
                pinned,
                self._cores,
            )

    def connect(self) -> LocalConnection:
        """Open a connection."""
        return LocalConnection(self._started(), self._flux_uri)

    def completion(self) -> LocalCompletion:
        """Open a completion."""
        server = self._started()
        return LocalCompletion(server, f"{server.directory}/channel-{next(self._channels)}")

    def _started(self) -> ServerProcess:
        if self._server is None:
            raise InstanceLost(f"{self.description}: not started, or closed")
        return self._server

    def job_name(self, job_id: JobId) -> str:
        """Return the id as people write it."""
        return str(job_id)

    def job_node(self, job_id: JobId) -> str:
        """Return this host."""
        return socket.gethostname()

    def close(self) -> None:
        """Kill what still runs and end the server."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()


class LocalConnection:
    """Submits and cancels; see :class:`parsl_flux_bulk.instances.base.Connection`."""

    in_flight = EMBEDDED_IN_FLIGHT

    def __init__(self, server: ServerProcess, flux_uri: str = "") -> None:
        self._server = server
        self._sock = server.connect()
        self._plans = PlanWriter(server.machine, flux_uri)

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        """Submit all; those that can never be satisfied are refused."""
        answers: list[JobId | Refusal] = []
        jobs: list[list[Any]] = []
        for request in requests:
            try:
                jobs.append(self._plans.write(request.jobspec, request.urgency))
                answers.append(0)
            except (JobspecError, Unsatisfiable) as error:
                answers.append(Refusal(str(error)))
        self._send({"op": "submit", "jobs": jobs})
        ids = iter(self._receive()["ids"])
        return [answer if isinstance(answer, Refusal) else next(ids) for answer in answers]

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        """Cancel jobs: SIGTERM to their processes, then SIGKILL after 5 s."""
        self._send({"op": "cancel", "ids": list(job_ids), "reason": reason})

    def output(self, job_id: JobId, start: Position) -> Output:
        """Return the next part of what the instance kept of a job's output.

        Kept until `close`: the output of the last 100,000 jobs that wrote any, 1 GiB at most.
        """
        self._server.check()
        part = read_files(spool_paths(self._server.directory, job_id), start)
        if part is None:
            self._send({"op": "output", "id": job_id})
            if missing := self._receive()["missing"]:
                raise OutputUnavailable(missing)
        return part or Output("", "", start)

    def jobs_with_output(self) -> int:
        """Return of how many jobs output is kept."""
        self._send({"op": "kept"})
        return int(self._receive()["jobs"])

    def capacity(self) -> Capacity:
        """Return what the machine has for jobs."""
        self._server.check()
        return Capacity(nodes=1, cores=self._server.machine.cores, gpus=self._server.machine.gpus)

    def close(self) -> None:
        """Close."""
        self._sock.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._sock.sendall(frame(json.dumps(message).encode()))
        except OSError as error:
            raise self._server.lost() from error

    def _receive(self) -> dict[str, Any]:
        """Wait for the one answer that is outstanding."""
        try:
            length = int.from_bytes(self._exactly(8), "little")
            answer: dict[str, Any] = json.loads(self._exactly(length))
        except OSError as error:
            raise self._server.lost() from error
        return answer

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            data = self._sock.recv(min(length, 1 << 20))
            if not data:
                raise self._server.lost()
            parts.append(data)
            length -= len(data)
        return b"".join(parts)


class LocalCompletion:
    """Reports how jobs ended, and serves their processes; see :class:`.base.Completion`."""

    def __init__(self, server: ServerProcess, channel_path: str) -> None:
        self._server = server
        self._channel_path = channel_path
        self._channel: SocketChannel | None = None
        self._unwatched: list[JobId] = []
        self._events: list[Event] = []
        self._selector = selectors.DefaultSelector()
        self._link = FramedSocket(server.connect(), self._selector, self._from_server)
        self._wakeup = Wakeup()
        self._woken = False
        self._closed = False
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_wake)

    def watch(self, job_id: JobId) -> None:
        """Report the end of this job."""
        self._check()
        self._unwatched.append(job_id)  # goes out with the next poll, together with others

    def poll(self, timeout: float | None) -> list[Event]:
        """Wait for events; see :meth:`.base.Completion.poll`."""
        self._check()
        if self._unwatched:
            self._link.send(json.dumps({"op": "watch", "ids": self._unwatched}).encode())
            self._unwatched = []
        deadline = None if timeout is None else time.monotonic() + min(timeout, LONGEST_WAIT)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, _ in self._selector.select(0 if self._events else left):
                key.data()
            if self._events or self._woken or (left is not None and left <= 0):
                break
            if self._link.closed:
                raise self._server.lost()
        self._woken = False
        # In place: the channel's server appends to this very list.
        events = self._events[:]
        self._events.clear()
        return events

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send a message to a peer; see :meth:`.base.Completion.send`."""
        if self._channel is not None:
            self._channel.send(peer, body)

    def send_from_any_thread(self, peer: PeerId, body: bytes, slot: int | None = None) -> bool:
        """Send to a peer or its worker: all are connected by sockets."""
        return self._channel is not None and self._channel.send(peer, body, slot)

    def channel(self) -> ChannelAddress:
        """Open the channel, and return its address."""
        self._check()
        if self._channel is None:
            self._channel = SocketChannel(self._channel_path, self._selector, self._events.append)
        return ChannelAddress({variables.CHANNEL: f"unix:{self._channel_path}"})

    def survey(self) -> None:
        """Do nothing: the machine has no other jobs."""

    def wake(self) -> None:
        """Make `poll` return, from any thread."""
        self._wakeup.wake()

    def close(self) -> None:
        """Close."""
        if self._closed:
            return
        self._closed = True
        self._wakeup.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._channel_path)
        self._link.close()
        self._selector.close()

    def _check(self) -> None:
        if self._closed or (self._link.closed and not self._events):
            raise self._server.lost()

    def _from_server(self) -> None:
        for message in self._link.receive():
            for job_id, *result in json.loads(message)["ended"]:
                self._events.append(JobEnded(job_id, _result(*result)))

    def _on_wake(self) -> None:
        self._wakeup.clear()
        self._woken = True


def _result(fields: dict[str, Any] | None, t_start: float | None, t_end: float | None) -> JobResult:
    if fields is None:
        return JobResult(JobStatus.COMPLETED, exit_code=0, t_start=t_start, t_end=t_end)
    return JobResult(**{**fields, "status": JobStatus(fields["status"])}, t_start=t_start, t_end=t_end)
