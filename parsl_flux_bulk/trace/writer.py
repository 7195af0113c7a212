"""Write a trace file, in a thread, so that a slow file system delays nothing else."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import select
import shlex
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from parsl_flux_bulk.trace.format import CHUNK, EVENT, MAGIC, TASKS, TEXT_LENGTH
from parsl_flux_bulk.version import __version__

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two writes: what a SIGKILL loses at most."""

CLOSE_TIMEOUT = 5.0
"""Seconds that the last write may take."""

CONTROL = ".control"
"""What is added to the name of a trace file for the FIFO that takes requests."""


class Writer:
    """A trace file that is written as a run goes on. All methods may be called in any thread.

    Parameters
    ----------
    path : str
        The file, which is replaced. It has mode 0600.
    on_request : callable or None
        Called in the writer's thread with the words of each line that another process writes to the FIFO
        beside the file. None: there is no FIFO.

    Raises
    ------
    OSError
        The file cannot be made.
    """

    def __init__(self, path: str, on_request: Callable[[list[str]], None] | None = None) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._chunks: deque[bytes] = deque([MAGIC])
        self._control = _open_control(path + CONTROL) if on_request is not None else -1
        self._on_request = on_request
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closed = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="flux-bulk-trace", daemon=True)
        self._thread.start()

    def event(self, event: str, fields: Mapping[str, Any], when: float | None = None) -> None:
        """Add an event; `when` is its time in seconds since the epoch, by default now."""
        content = json.dumps(
            {"event": event, "time": round(time.time() if when is None else when, 6), **fields}, default=str
        ).encode()
        self._chunks.append(CHUNK.pack(EVENT, len(content)) + content)

    def tasks(self, records: list[bytes]) -> None:
        """Add the records of tasks that ended."""
        content = b"".join(records)
        self._chunks.append(CHUNK.pack(TASKS, len(content)) + content)

    def close(self) -> None:
        """Write what is left, and close; bounded in time. A second call does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        os.close(self._waker)
        self._thread.join(CLOSE_TIMEOUT)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                # A request is answered within milliseconds; otherwise the thread wakes twice a second.
                watched = [self._wake] if self._control < 0 else [self._wake, self._control]
                if self._control in select.select(watched, [], [], INTERVAL)[0]:
                    self._take_requests()
                self._write()
            self._write()
        except OSError as error:
            logger.warning("trace ended file=%s: %s", self.path, error)
            self._chunks = deque(maxlen=0)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self.path + CONTROL)
            for descriptor in (self._file, self._control, self._wake):
                if descriptor >= 0:
                    os.close(descriptor)

    def _write(self) -> None:
        chunks, parts = self._chunks, []
        while chunks:
            parts.append(chunks.popleft())
        left = memoryview(b"".join(parts))
        while left:
            left = left[os.write(self._file, left) :]

    def _take_requests(self) -> None:
        try:
            lines = os.read(self._control, 4096).decode(errors="replace").splitlines()
        except BlockingIOError:
            return
        for line in lines:
            if self._on_request is not None and line.strip():
                try:
                    self._on_request(line.split())
                except Exception as error:
                    logger.warning("request refused line=%r: %s", line, error)


def this_process() -> dict[str, Any]:
    """Return the fields of the event ``run`` about this process."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": shlex.join(sys.argv)[:TEXT_LENGTH],
        "directory": os.getcwd(),
    }


def _open_control(path: str) -> int:
    """Make the FIFO and open it; -1 where the file system has none."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # For writing, too: with a reader alone, the FIFO would be at its end between two requests.
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        logger.info("no control FIFO path=%s: %s", path, error)
        return -1


def request(path: str, line: str) -> None:
    """Send a request to the process that writes a trace file.

    Raises
    ------
    OSError
        No process on this host writes that file, or its file system has no FIFOs.
    """
    descriptor = os.open(path + CONTROL, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
