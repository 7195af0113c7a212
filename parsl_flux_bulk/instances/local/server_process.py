"""The embedded instance's server as the user's process sees it: process, control socket, directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.local import processes
from parsl_flux_bulk.instances.local.machine import Machine, claims_path
from parsl_flux_bulk.instances.socket_channel import SOCKET_PATH_LIMIT
from parsl_flux_bulk.protocol.stderr_tail import last_lines

SERVER = "parsl_flux_bulk.instances.local.server"
"""The module of the server, whose import would cost this process time."""

START_BOUND = 30.0
"""Seconds within which the server must start."""

CLOSE_BOUND = processes.END_BOUND + 5.0
"""Seconds within which the server must end everything."""


class ServerProcess:
    """A server that starts or runs; used by every thread.

    Parameters
    ----------
    machine : Machine
    usable : list of tuple of int
        The CPUs of each core that this process may use.
    gpus : list of str or None
        As ``CUDA_VISIBLE_DEVICES`` names them; None leaves that variable of jobs alone.
    first_id : int
        Id of the first job.

    Attributes
    ----------
    directory : str
        Private to this user: the channel's sockets, kept output, scratch of running jobs.

    Raises
    ------
    InstanceUnavailable
        The process did not start; says why.
    """

    def __init__(
        self, machine: Machine, usable: list[tuple[int, ...]], gpus: list[str] | None, first_id: int
    ) -> None:
        self.machine = machine
        self.directory = _private_directory()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end = ""
        self._lock = threading.Lock()
        configuration = {
            "directory": self.directory,
            "owner": os.getpid(),
            "cores": machine.cores,
            "usable": usable,
            "claims": claims_path(),
            "gpus": gpus,
            "first_id": first_id,
        }
        try:
            self._process = self._start(theirs)
            self._control.settimeout(START_BOUND)
            with contextlib.suppress(OSError):  # if the process has ended, `wait_ready` tells why
                self._control.send(json.dumps(configuration).encode())
        except BaseException:
            self._clean_up()
            raise
        finally:
            theirs.close()

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise InstanceUnavailable(
                "the embedded instance needs a Python interpreter, but sys.executable is empty"
            )
        root = str(Path(__file__).resolve().parents[3])
        program = f"import sys; sys.path.append({root!r}); from {SERVER} import main; main()"
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program],
                stdin=control.fileno(), stdout=self._log, stderr=self._log, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise InstanceUnavailable(f"cannot start the embedded instance's server: {error}") from error

    def wait_ready(self) -> int:
        """Wait until the server has started; return the number of cores that jobs are pinned to.

        Other embedded instances on this host have claimed the rest.

        Raises
        ------
        InstanceUnavailable
            The server did not start; says why.
        """
        try:
            ready = self._control.recv(16)
        except OSError as error:
            ready = str(error).encode()
        if not ready.startswith(b"ready "):
            self._process.kill()
            self._process.wait()
            reason = self._log_tail() or ready.decode(errors="replace") or "no output"
            self._clean_up()
            raise InstanceUnavailable(
                f"the embedded instance's server ({sys.executable}) did not start: {reason}"
            )
        self._control.settimeout(None)
        return int(ready.removeprefix(b"ready "))

    def connect(self) -> socket.socket:
        """Return a new stream socket to the server."""
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
        """Raise InstanceLost if the server has ended."""
        if self._end or self._process.poll() is not None:
            raise self.lost()

    def lost(self) -> InstanceLost:
        """Return the error to raise when the server does not answer; its jobs are dead after this."""
        with self._lock:
            if not self._end:
                self._end = self._kill_all()
        return InstanceLost(self._end)

    def _kill_all(self) -> str:
        """Make sure that the server and its jobs are dead; return how the server ended."""
        self._process.kill()  # the server closed a socket, so it has ended or is about to
        status = self._process.wait()
        processes.kill_all_of(self.directory)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        log = self._log_tail()
        self._clean_up()
        return f"the embedded instance's server (pid {self._process.pid}) {how}" + (f": {log}" if log else "")

    def _log_tail(self) -> str:
        self._log.seek(0)
        return last_lines(self._log.read().decode(errors="replace"))

    def close(self) -> None:
        """End the server, which kills what still runs."""
        with self._lock:
            if self._end:
                return
            self._end = "the embedded instance is closed"
            with contextlib.suppress(OSError):  # a timeout, too
                self._control.send(b"close")
                self._control.settimeout(CLOSE_BOUND)
                self._control.recv(1)  # until the server ends; `wait` with a timeout looks only now and then
            try:
                self._process.wait(CLOSE_BOUND)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                processes.kill_all_of(self.directory)
            self._clean_up()

    def _clean_up(self) -> None:
        self._control.close()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


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
