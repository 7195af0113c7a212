"""Pass on the standard error of worker processes, and keep the last lines in case one of them dies.

Memory is bounded and the manager never blocks: while its own standard error accepts nothing, the manager
stops reading, so that the workers block, as they would without a manager in between.
"""

from __future__ import annotations

import os
import select
from functools import partial

from parsl_flux_bulk.protocol.stderr_tail import last_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parsl_flux_bulk.worker.event_loop import EventLoop

_STDERR = 2
_TAIL_BYTES = 8192
_READ_SIZE = 1 << 16
_READS_AT_END = 4  # more than a pipe holds; a process that has left the group may go on writing
_WRITE_SIZE = 4096  # PIPE_BUF: a write of this size to a writable pipe does not block


class StderrRelay:
    """Relays several pipes, each identified by a key, to standard error.

    Parameters
    ----------
    loop
        Watches the pipes, and standard error while that accepts nothing.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._pipes: dict[int, int] = {}
        self._tails: dict[int, bytes] = {}
        self._backlog = b""
        self._paused = False
        self._stderr_poll = select.poll()
        self._stderr_poll.register(_STDERR, select.POLLOUT)

    def attach(self, key: int, pipe: int) -> None:
        """Relay a pipe from now on."""
        os.set_blocking(pipe, False)
        self._pipes[key], self._tails[key] = pipe, b""
        if not self._paused:
            self._loop.watch(pipe, partial(self._read, key))

    def detach(self, key: int) -> str:
        """Relay what is left in the pipe of an ended process, close it, and return the last lines."""
        for _ in range(_READS_AT_END):
            if not self._read(key):
                break
        self._close(key)
        return last_lines(self._tails.pop(key).decode(errors="replace"))

    def write(self, line: str) -> None:
        """Write a line of the manager's own; drop it while standard error accepts nothing."""
        if not self._paused:
            self._backlog += line.encode(errors="replace") + b"\n"
            self._write()

    def _write(self) -> None:
        while self._backlog and self._stderr_poll.poll(0):
            try:
                self._backlog = self._backlog[os.write(_STDERR, self._backlog[:_WRITE_SIZE]) :]
            except BlockingIOError:
                break
            except OSError:
                self._backlog = b""  # nobody reads it
        self._pause(bool(self._backlog))

    def _read(self, key: int) -> bool:
        """Read a pipe once; return whether more may follow."""
        pipe = self._pipes.get(key)
        if pipe is None:
            return False
        try:
            data = os.read(pipe, _READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            self._close(key)  # user code closed its standard error
            return False
        self._tails[key] = (self._tails[key] + data)[-_TAIL_BYTES:]
        self._backlog += data
        self._write()
        return True

    def _close(self, key: int) -> None:
        pipe = self._pipes.pop(key, None)
        if pipe is not None:
            self._loop.unwatch(pipe)
            os.close(pipe)

    def _pause(self, pause: bool) -> None:
        if pause is self._paused:
            return
        self._paused = pause
        if pause:
            self._loop.watch(_STDERR, self._write, writable=True)
        else:
            self._loop.unwatch(_STDERR)
        for key, pipe in self._pipes.items():
            if pause:
                self._loop.unwatch(pipe)
            else:
                self._loop.watch(pipe, partial(self._read, key))
