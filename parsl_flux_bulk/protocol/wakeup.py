"""Wake a thread that waits for file descriptors: from another thread, or by a signal."""

from __future__ import annotations

import os
import signal
from _thread import RLock  # a worker's process need not import threading


class Wakeup:
    """A file descriptor that is readable from a call of `wake` until the next `clear`.

    Wake-ups coalesce: a full pipe is readable already.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        # Held while writing, so that `close` cannot free the descriptor's number for another file meanwhile.
        # Reentrant, because the handler of a signal may wake the thread that it interrupts.
        self._lock = RLock()
        self._closed = False

    def fileno(self) -> int:
        """Return the file descriptor to wait for."""
        return self._reader

    def wake(self) -> None:
        """Make the file descriptor readable; any thread and any signal handler may. No effect once closed."""
        with self._lock:
            if not self._closed:
                try:
                    os.write(self._writer, b"\0")
                except BlockingIOError:
                    pass  # full

    def clear(self) -> None:
        """Make the file descriptor unreadable until the next wake-up."""
        try:
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def wake_on_signals(self) -> int:
        """Have the interpreter wake at every signal that Python handles; main thread only.

        Returns
        -------
        int
            The previous file descriptor, for :func:`signal.set_wakeup_fd`; -1 if there was none.
        """
        return signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def close(self) -> None:
        """Close the file descriptors; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                os.close(self._writer)
