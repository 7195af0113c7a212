"""The channel between a process of a job and the executor.

::

    Channel            send, receive, wait; fileno for an event loop
     ├─ UnixChannel    embedded instance: a Unix stream socket (unix_channel.py)
     └─ FluxChannel    Flux: requests to the executor's service (flux_channel.py)

`handshake.connect` opens the one that the environment names. A message is any bytes; `protocol.frames` says
what they hold. The first message introduces the process to the executor.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class ChannelLost(ConnectionError):
    """The executor has ended or cannot be reached."""


class Channel:
    """Base of the transports. Belongs to one thread; every method may raise ChannelLost."""

    def __init__(self) -> None:
        self._received: list[bytes] = []

    def send(self, body: bytes) -> None:
        """Send a message. Blocks while the system's buffers are full, but never waits for the executor."""
        raise NotImplementedError

    def open_lane(self, tasks: socket.socket) -> bool:
        """Give the executor the manager's end of a worker's socket; return whether that is possible."""
        return False

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when `receive` must be called.

        The descriptor may be edge-triggered: call `receive` once after every wake-up.
        """
        raise NotImplementedError

    def timeout(self) -> float | None:
        """Return the seconds after which `receive` must be called even if nothing is readable."""
        return None

    def receive(self) -> list[bytes]:
        """Return all complete messages without waiting."""
        self._received += self._read()
        received, self._received = self._received, []
        return received

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds for a message; return whether `receive` has one."""
        return self._wait_for(lambda: bool(self._received), timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until this process can exit without losing a sent message; return whether it can."""
        return True

    def close(self) -> None:
        """Close the channel; may be called twice."""
        raise NotImplementedError

    def _read(self) -> list[bytes]:
        """Return the complete messages; raise ChannelLost only after all of them were received."""
        raise NotImplementedError

    def _wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        while True:
            self._received += self._read()
            if condition():
                return True
            limits = [self.timeout(), None if end is None else end - time.monotonic()]
            if limits[1] is not None and limits[1] <= 0:
                return False
            left = min((limit for limit in limits if limit is not None), default=None)
            poll.poll(None if left is None else left * 1000)
