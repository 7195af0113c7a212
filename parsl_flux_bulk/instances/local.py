"""The embedded instance: jobspecs as processes on this machine, without Flux.

A laptop, or a login node without Flux, runs the same pipeline with it. Jobs get whole cores, first
come first served within one urgency, and are pinned to them; what this machine cannot satisfy is
refused in words. A core is a physical one with all its hardware threads, of those CPUs that this
process may use.

This module is the user's end. Queue and processes belong to a small separate process, the broker
(:mod:`.local_broker`), which ends, and takes every process of every job with it, when this process
ends. The workers' channel is served here, in the completion thread (:mod:`.local_peers`).

What differs from Flux: no PMI (an MPI program of several tasks runs as so many single ones), no
queues, dependencies or properties, ids are small decimal numbers, and what a task leaves behind in
the background is killed when its job ends. Linux only, as Flux.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable, JobspecError
from parsl_flux_bulk.instances import local_broker, local_processes
from parsl_flux_bulk.instances.base import (
    Capacity,
    ChannelAddress,
    Event,
    JobEnded,
    JobId,
    JobRequest,
    JobResult,
    JobStatus,
    PeerId,
    Refusal,
)
from parsl_flux_bulk.instances.framing import LONGEST_WAIT, FramedSocket, frame
from parsl_flux_bulk.instances.local_jobspec import Machine, Unsatisfiable, plan_job
from parsl_flux_bulk.instances.local_peers import SOCKET_PATH_LIMIT, PeerServer
from parsl_flux_bulk.instances.local_stdio import spool_paths

START_BOUND = 30.0
"""Seconds that the broker has to come up."""

CLOSE_BOUND = local_broker.END_BOUND + 5.0
"""Seconds that the broker has to end everything."""

_COMPLETED = JobResult(JobStatus.COMPLETED, exit_code=0)


class LocalInstance:
    """This machine as a place where jobs run.

    Parameters
    ----------
    cores : int, optional
        How many cores jobs may use; by default all those that this process may use.
    working_dir : str or os.PathLike, optional
        Where jobs run whose jobspec names no directory; by default the current one at `start`.
    gpus : int
        How many GPUs jobs may ask for: the first of those in ``CUDA_VISIBLE_DEVICES``, or 0, 1, …
        where that is not set. With 0, the default, a job that asks for a GPU is refused, and that
        variable is left alone.
    oversubscribe : bool
        Allow more `cores` than there are; several then share one.
    """

    def __init__(
        self,
        cores: int | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        *,
        gpus: int = 0,
        oversubscribe: bool = False,
    ) -> None:
        there = physical_cores()
        if cores is not None and (cores < 1 or (cores > len(there) and not oversubscribe)):
            raise ValueError(
                f"cores={cores}: this process may use {len(there)}; "
                f"give 1 to {len(there)}, or oversubscribe=True"
            )
        if gpus < 0:
            raise ValueError(f"gpus={gpus}: give 0 or more")
        wanted = len(there) if cores is None else cores
        self._cores = [there[number % len(there)] for number in range(wanted)]
        self._gpus = gpus
        self._working_dir = working_dir
        self._broker: _BrokerProcess | None = None
        self._machine: Machine | None = None
        self._channels = itertools.count()
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """One line for people."""
        gpus = f" and {self._gpus} GPU{'s' * (self._gpus != 1)}" if self._gpus else ""
        count = len(self._cores)
        return f"embedded instance: {count} core{'s' * (count != 1)}{gpus} of {socket.gethostname()}"

    def start(self) -> None:
        """Start the broker.

        Raises
        ------
        InstanceUnavailable
            It did not come up; says why.
        """
        with self._lock:
            if self._broker is not None:
                return
            working_dir = os.path.abspath(self._working_dir or os.getcwd())
            self._machine = Machine(socket.gethostname(), len(self._cores), self._gpus, working_dir)
            self._broker = _BrokerProcess(self._cores, gpu_names(self._gpus))

    def connect(self) -> LocalConnection:
        """Open a connection."""
        broker, machine = self._started()
        return LocalConnection(broker, machine)

    def completion(self) -> LocalCompletion:
        """Open a completion."""
        broker, _ = self._started()
        return LocalCompletion(broker, f"{broker.directory}/channel-{next(self._channels)}")

    def _started(self) -> tuple[_BrokerProcess, Machine]:
        if self._broker is None or self._machine is None:
            raise InstanceLost(f"{self.description}: not started, or closed")
        return self._broker, self._machine

    def job_name(self, job_id: JobId) -> str:
        """The id as people write it."""
        return str(job_id)

    def close(self) -> None:
        """Kill what still runs and end the broker."""
        with self._lock:
            broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()


class LocalConnection:
    """Submits and cancels; see :class:`parsl_flux_bulk.instances.base.Connection`."""

    def __init__(self, broker: _BrokerProcess, machine: Machine) -> None:
        self._broker = broker
        self._machine = machine
        self._sock = broker.connect()
        self._received = b""

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        """Submit all; those that are invalid or can never be satisfied are refused."""
        answers: list[JobId | Refusal] = []
        plans: list[dict[str, Any]] = []
        for request in requests:
            try:
                plans.append(vars(plan_job(request.jobspec, self._machine, request.urgency)))
                answers.append(0)
            except (JobspecError, Unsatisfiable) as error:
                answers.append(Refusal(str(error)))
        self._send({"op": "submit", "plans": plans})
        ids = iter(self._receive()["ids"])
        return [answer if isinstance(answer, Refusal) else next(ids) for answer in answers]

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        """Cancel jobs: SIGTERM to their processes, then SIGKILL after 5 s."""
        self._send({"op": "cancel", "ids": list(job_ids), "reason": reason})

    def output(self, job_id: JobId) -> tuple[str, str]:
        """Return what the instance kept of a job's output.

        Kept until `close`: the output of the last 10,000 jobs that wrote any, 256 MiB at most.
        """
        self._broker.check()
        out, err = (_read_text(path) for path in spool_paths(self._broker.directory, job_id))
        return out, err

    def capacity(self) -> Capacity:
        """Say what there is."""
        self._broker.check()
        return Capacity(nodes=1, cores=self._machine.cores, gpus=self._machine.gpus)

    def close(self) -> None:
        """Close."""
        self._sock.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._sock.sendall(frame(json.dumps(message).encode()))
        except OSError as error:
            raise self._broker.lost() from error

    def _receive(self) -> dict[str, Any]:
        """Wait for the one answer that is outstanding."""
        try:
            length = int.from_bytes(self._exactly(8), "little")
            answer: dict[str, Any] = json.loads(self._exactly(length))
        except OSError as error:
            raise self._broker.lost() from error
        return answer

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            data = self._sock.recv(min(length, 1 << 20))
            if not data:
                raise self._broker.lost()
            parts.append(data)
            length -= len(data)
        return b"".join(parts)


class LocalCompletion:
    """Hears how jobs ended, and serves their processes; see :class:`.base.Completion`."""

    def __init__(self, broker: _BrokerProcess, channel_path: str) -> None:
        self._broker = broker
        self._channel_path = channel_path
        self._peers: PeerServer | None = None
        self._unwatched: list[JobId] = []
        self._events: list[Event] = []
        self._selector = selectors.DefaultSelector()
        self._link = FramedSocket(broker.connect())
        self._writing = False
        self._selector.register(self._link.sock, selectors.EVENT_READ, self._from_broker)
        self._wake_lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False
        self._closed = False
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._on_wake)

    def watch(self, job_id: JobId) -> None:
        """Report the end of this job."""
        self._check()
        self._unwatched.append(job_id)  # goes out with the next poll, together with others

    def poll(self, timeout: float | None) -> list[Event]:
        """Wait for events; see :meth:`.base.Completion.poll`."""
        self._check()
        self._send_watches()
        deadline = None if timeout is None else time.monotonic() + min(timeout, LONGEST_WAIT)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, _ in self._selector.select(0 if self._events else left):
                key.data()
            if self._events or self._woken or (left is not None and left <= 0):
                break
            if self._link.closed:
                raise self._broker.lost()
        self._woken = False
        # In place: the peers' server appends to this very list.
        events = self._events[:]
        self._events.clear()
        return events

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send a message to a peer."""
        self._check()
        if self._peers is not None:
            self._peers.send(peer, body)

    def channel(self) -> ChannelAddress:
        """Open the channel, and say how to reach it."""
        self._check()
        if self._peers is None:
            self._peers = PeerServer(self._channel_path, self._selector, self._events)
        return ChannelAddress({"PARSL_FLUX_BULK_CHANNEL": f"unix:{self._channel_path}"})

    def wake(self) -> None:
        """Make `poll` return, from any thread."""
        with self._wake_lock:  # or `close` might give the descriptor's number to somebody else
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close."""
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake_fd)
        if self._peers is not None:
            self._peers.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._channel_path)
        self._link.close()
        self._selector.close()

    def _check(self) -> None:
        if self._closed or (self._link.closed and not self._events):
            raise self._broker.lost()

    def _send_watches(self) -> None:
        if self._unwatched:
            self._link.send(json.dumps({"op": "watch", "ids": self._unwatched}).encode())
            self._unwatched = []
            self._watch_writing()

    def _from_broker(self) -> None:
        self._link.flush()
        for message in self._link.receive():
            for job_id, fields in json.loads(message)["ended"]:
                self._events.append(JobEnded(job_id, _result(fields)))
        if self._link.closed:
            self._selector.unregister(self._link.sock)
        else:
            self._watch_writing()

    def _watch_writing(self) -> None:
        if self._link.backlog != self._writing:
            self._writing = self._link.backlog
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._writing else 0)
            self._selector.modify(self._link.sock, mask, self._from_broker)

    def _on_wake(self) -> None:
        os.eventfd_read(self._wake_fd)
        self._woken = True


class _BrokerProcess:
    """The broker: its process, its control socket and its private directory."""

    def __init__(self, cores: list[list[int]], gpus: list[str] | None) -> None:
        self.directory = _private_directory()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end = ""
        self._lock = threading.Lock()
        try:
            self._process = self._start(theirs)
            self._configure(cores, gpus)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._control.close()
            self._log.close()
            raise
        finally:
            theirs.close()

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise InstanceUnavailable(
                "the embedded instance needs a Python interpreter: sys.executable is empty"
            )
        root = str(Path(__file__).resolve().parents[2])
        program = f"import sys; sys.path.append({root!r}); from {local_broker.__name__} import main; main()"
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program],
                stdin=control.fileno(), stdout=self._log, stderr=self._log, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise InstanceUnavailable(f"cannot start the embedded instance's broker: {error}") from error

    def _configure(self, cores: list[list[int]], gpus: list[str] | None) -> None:
        configuration = {"cores": cores, "gpus": gpus, "directory": self.directory, "owner": os.getpid()}
        self._control.settimeout(START_BOUND)
        try:
            self._control.send(json.dumps(configuration).encode())
            ready = self._control.recv(16)
        except OSError as error:
            ready = str(error).encode()
        if ready != b"ready":
            self._process.kill()
            self._process.wait()
            said = self._log_tail() or ready.decode(errors="replace") or "it said nothing"
            raise InstanceUnavailable(
                f"the embedded instance's broker ({sys.executable}) did not start: {said}"
            )
        self._control.settimeout(None)

    def connect(self) -> socket.socket:
        """Return a new stream socket to the broker."""
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [b"connect"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise self.lost() from error
        finally:
            theirs.close()
        return ours

    def check(self) -> None:
        """Raise InstanceLost if the broker has ended."""
        if self._end or self._process.poll() is not None:
            raise self.lost()

    def lost(self) -> InstanceLost:
        """The error to raise where the broker does not answer; its jobs are dead after this."""
        with self._lock:
            if not self._end:
                self._end = self._bury()
        return InstanceLost(self._end)

    def _bury(self) -> str:
        """Make sure that all is dead, and say how it ended."""
        self._process.kill()  # it closed a socket, so it has ended or is about to
        status = self._process.wait()
        local_processes.kill_all_of(self.directory)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        log = self._log_tail()
        self._clean_up()
        return f"the embedded instance's broker (pid {self._process.pid}) {how}" + (f": {log}" if log else "")

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:]

    def close(self) -> None:
        """End the broker, which kills what still runs."""
        with self._lock:
            if self._end:
                return
            self._end = "the embedded instance is closed"
            with contextlib.suppress(OSError):
                self._control.send(b"close")
            try:
                self._process.wait(CLOSE_BOUND)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                local_processes.kill_all_of(self.directory)
            self._clean_up()

    def _clean_up(self) -> None:
        self._control.close()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def physical_cores() -> list[list[int]]:
    """The CPUs that this process may use, those of one physical core together."""
    usable = os.sched_getaffinity(0)
    cores: dict[str, list[int]] = {}
    for cpu in sorted(usable):
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(cpu)
        cores.setdefault(siblings.strip(), []).append(cpu)
    return list(cores.values())


def gpu_names(count: int) -> list[str] | None:
    """The names of the first `count` GPUs; None for none."""
    if not count:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if count > len(names):
        raise InstanceUnavailable(f"gpus={count}: CUDA_VISIBLE_DEVICES={visible!r} names {len(names)}")
    return names[:count]


def _private_directory() -> str:
    for parent in (tempfile.gettempdir(), "/tmp"):
        try:
            directory = tempfile.mkdtemp(prefix="flux-bulk-", dir=parent)
        except OSError as error:
            raise InstanceUnavailable(f"cannot make a directory in {parent}: {error}; set TMPDIR") from error
        if len(os.fsencode(directory)) + len("/channel-0000") <= SOCKET_PATH_LIMIT:
            return directory
        os.rmdir(directory)  # too deep for the path of a Unix socket
    raise InstanceUnavailable("the path of the temporary directory is too long for a Unix socket; set TMPDIR")


def _result(fields: dict[str, Any] | None) -> JobResult:
    if fields is None:
        return _COMPLETED
    return JobResult(**{**fields, "status": JobStatus(fields["status"])})


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
