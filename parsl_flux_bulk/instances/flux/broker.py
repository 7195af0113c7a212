"""A Flux instance of our own, on this machine: the process, which ends when we do, however we end."""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import weakref

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.jobspec.job_environment import base_environment

logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds that an instance may take to come up."""

STOP_TIMEOUT = 15.0
"""Seconds that an instance may take to shut down before it is killed."""

KEPT_FINISHED_JOBS = 1000
"""Finished jobs that an instance of our own keeps: its memory grows with each (flux-core#7809)."""


class Broker:
    """``flux start``, up from the constructor on.

    Attributes
    ----------
    uri : str
        Where the instance is.

    Raises
    ------
    InstanceUnavailable
        Says what is missing, or what the command wrote.
    """

    def __init__(self) -> None:
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
            # cat ends, and the instance with it, when the other end of its stdin closes.
            *("sh", "-c", 'echo "$FLUX_URI"; exec cat >/dev/null'),
        ]
        with tempfile.TemporaryFile() as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=base_environment(os.environ),
                # Ctrl-C at the terminal is ours to handle.
                start_new_session=True,
            )
            close_in_forks(self._process)
            try:
                uri = _read_line(self._process, START_TIMEOUT)
            except BaseException:  # Ctrl-C
                self._give_up()
                raise
            if uri is None:
                why = self._give_up()
                stderr.seek(0)
                said = stderr.read().decode(errors="replace").strip()
                raise InstanceUnavailable(f"`{flux} start` {why}: {said or 'it printed nothing'}")
        self.uri = uri

    def stop(self) -> None:
        """Shut the instance down; bounded in time."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            logger.warning("our Flux instance %s did not end in %g s: killing it", self.uri, STOP_TIMEOUT)
            _kill_group(process)
        process.stdout.close()

    def _give_up(self) -> str:
        """End a process that has not come up; return what was wrong with it."""
        code = self._process.poll()
        _kill_group(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return (
            f"exited with status {code}" if code is not None else f"was not ready within {START_TIMEOUT:g} s"
        )


def close_in_forks(process: subprocess.Popen[bytes]) -> None:
    """Keep a fork of this process from allocation the pipe whose end tells `process` that we died."""
    reference = weakref.ref(process)

    def close() -> None:
        process = reference()
        if process is not None and process.stdin is not None and not process.stdin.closed:
            os.close(process.stdin.fileno())

    os.register_at_fork(after_in_child=close)


def _read_line(process: subprocess.Popen[bytes], timeout: float) -> str | None:
    """Read one line of a process's output; None if it ends, or is late."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not chunk:
            if ready:
                process.wait(5)
            return None
        line += chunk
    return line.decode().strip()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
