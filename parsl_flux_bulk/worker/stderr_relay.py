"""What a pool's children write to their standard error: passed on, its end kept for when one dies.

Memory is bounded, and the pool never waits: while its own standard error takes nothing, nothing is read
from the children's, so that it is they who wait, as they would without a pool between.
"""

from __future__ import annotations

import os
import select

TAIL_LINES = 20
_TAIL_BYTES = 8192
_READ_SIZE = 1 << 16
_READS_AT_END = 4  # more than a pipe holds; a process that has left its group may go on writing
# What a pipe that is ready is sure to take (PIPE_BUF), so that a write to it does not block.
_WRITE_SIZE = 4096

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parsl_flux_bulk.worker.event_loop import EventLoop


class StderrRelay:
    """Passes on what several pipes bring, each known by its key.

    Parameters
    ----------
    loop
        Watches the pipes, and the target while it takes nothing.
    target
        File descriptor to pass on to.
    """

    def __init__(self, loop: EventLoop, target: int = 2) -> None:
        self._loop = loop
        self._target = target
        self._pipes: dict[int, int] = {}
        self._tails: dict[int, bytes] = {}
        self._backlog = b""
        self._paused = False
        self._target_poll = select.poll()
        self._target_poll.register(target, select.POLLOUT)

    def attach(self, key: int, pipe: int) -> None:
        """Watch a new child's pipe."""
        os.set_blocking(pipe, False)
        self._pipes[key], self._tails[key] = pipe, b""
        if not self._paused:
            self._watch(key)

    def detach(self, key: int) -> str:
        """Pass on what a child that has ended left, forget it, and return its last lines."""
        for _ in range(_READS_AT_END):
            if not self._take(key):
                break
        self._close(key)
        del self._pipes[key]
        lines = self._tails.pop(key).decode(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def _write(self) -> None:
        while self._backlog and self._target_poll.poll(0):
            try:
                self._backlog = self._backlog[os.write(self._target, self._backlog[:_WRITE_SIZE]) :]
            except BlockingIOError:
                break
            except OSError:
                self._backlog = b""  # nobody reads it
        self._pause(bool(self._backlog))

    def _read(self, key: int) -> None:
        self._take(key)

    def _take(self, key: int) -> bool:
        """Read a pipe once; return whether there may be more."""
        if self._pipes[key] < 0:
            return False
        try:
            data = os.read(self._pipes[key], _READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            self._close(key)  # the user's code closed its standard error
            return False
        self._tails[key] = (self._tails[key] + data)[-_TAIL_BYTES:]
        self._backlog += data
        self._write()
        return True

    def _close(self, key: int) -> None:
        pipe, self._pipes[key] = self._pipes[key], -1
        if pipe >= 0:
            self._loop.unwatch(pipe)
            os.close(pipe)

    def _watch(self, key: int) -> None:
        self._loop.watch(self._pipes[key], lambda: self._read(key))

    def _pause(self, pause: bool) -> None:
        if pause is self._paused:
            return
        self._paused = pause
        if pause:
            self._loop.watch(self._target, self._write, writable=True)
        else:
            self._loop.unwatch(self._target)
        for key, pipe in self._pipes.items():
            if pipe >= 0 and pause:
                self._loop.unwatch(pipe)
            elif pipe >= 0:
                self._watch(key)
