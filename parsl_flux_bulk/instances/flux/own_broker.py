"""Start and stop a Flux instance on this machine; the instance ends with this process, also if killed."""

from __future__ import annotations

import logging
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import IO, cast

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.flux.lifeline import Lifeline
from parsl_flux_bulk.instances.flux.session import SessionGuard, kill_session
from parsl_flux_bulk.jobspec.job_environment import base_environment

logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds until ``flux start`` must have printed its URI."""

TMPDIR_LIMIT = 80
"""Bytes of TMPDIR at most: the path of a Unix socket has 107, to which the broker appends some 20."""

STOP_TIMEOUT = 15.0
"""Seconds until an instance that shuts down is killed."""

KEPT_FINISHED_JOBS = 300
"""Inactive jobs that an owned instance keeps: a broker's memory grows with each (flux-core#7809)."""


class Broker:
    """A running ``flux start``.

    Attributes
    ----------
    uri : str
        Where the instance is.
    spool : str
        Directory for the output of jobs that name no file; the broker removes it at its end, with its own.

    Raises
    ------
    InstanceUnavailable
        Says what is missing, or what the command wrote.
    """

    def __init__(self) -> None:
        self._guard: SessionGuard | None = None
        flux = shutil.which("flux")
        if flux is None:
            raise InstanceUnavailable(
                "cannot start a Flux instance: no `flux` command on PATH. Load the site's flux module, "
                "install flux-core (conda-forge, Spack), or use instance='local'."
            )
        command = [
            flux,
            "start",
            "-Sbroker.boot-method=single",
            f"--conf=job-manager.inactive-num-limit={KEPT_FINISHED_JOBS}",
            # cat is the initial program: the instance ends with cat, and cat with its standard input.
            *("sh", "-c", 'echo "$FLUX_URI"; exec cat >/dev/null'),
        ]
        with tempfile.TemporaryFile() as stderr:
            self._lifeline = Lifeline(
                command, stdout=subprocess.PIPE, stderr=stderr, env=_broker_environment()
            )
            process = self._lifeline.process
            try:
                self._guard = SessionGuard(process.pid, STOP_TIMEOUT)
                with cast("IO[bytes]", process.stdout) as output:
                    uri = _read_line(output.fileno(), START_TIMEOUT)
                if uri is None:
                    raise InstanceUnavailable(f"`{flux} start` {_failure(process)}: {_written(stderr)}")
                self._directory = os.path.dirname(uri.removeprefix("local://"))
                self.spool = os.path.join(self._directory, "job-output")
                os.mkdir(self.spool, 0o700)
            except BaseException:  # KeyboardInterrupt, too
                self._kill()
                raise
        self.uri = uri

    def stop(self) -> None:
        """Shut the instance down; bounded in time."""
        self._lifeline.close()
        try:
            self._lifeline.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            logger.warning("instance killed uri=%s: no end within %g s", self.uri, STOP_TIMEOUT)
        self._kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _kill(self) -> None:
        """Kill what is left of the instance."""
        process = self._lifeline.process
        kill_session(process.pid)
        process.wait()
        self._lifeline.close()
        if self._guard is not None:
            self._guard.dismiss()


def _broker_environment() -> dict[str, str]:
    """Return the environment to start a broker with, whose directory in TMPDIR must fit a socket's path."""
    environment = base_environment(os.environ)
    directory = environment.get("TMPDIR", "/tmp")
    if len(os.fsencode(directory)) > TMPDIR_LIMIT or not os.access(directory, os.W_OK | os.X_OK):
        logger.warning("TMPDIR=%s not used by the broker: missing, not writable, or too long", directory)
        environment["TMPDIR"] = "/tmp"
    return environment


def _failure(process: subprocess.Popen[bytes]) -> str:
    try:
        return f"exited with status {process.wait(0.5)}"
    except subprocess.TimeoutExpired:
        return f"was not ready within {START_TIMEOUT:g} s"


def _written(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return stderr.read().decode(errors="replace").strip() or "it printed nothing"


def _read_line(descriptor: int, timeout: float) -> str | None:
    """Read one line; return None at the end of the output, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, 4096) if ready else b""
        if not chunk:
            return None
        line += chunk
    return line.decode().strip()
