"""A job's process's own end of the channel to the executor.

::

    connect(environ) ─> Channel   send, receive, wait, fileno for an event loop
                         ├─ UnixChannel   the embedded instance: a Unix stream socket
                         └─ FluxChannel   Flux, in parsl_flux_bulk.worker.channel_flux

A message is any bytes; see `protocol.frames` for what is in them. The first message that is sent
introduces this process to the executor. Nothing is imported that the transport in use does not need, since
every process of every job pays for it, on a shared file system.
"""

from __future__ import annotations

import select
import struct
import time

from parsl_flux_bulk.protocol.variables import CHANNEL, LIBFLUX, PING, PING_TIMEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PING = 10.0
# An executor that is dead is told apart at once (ENOSYS). This bounds the rarer case of one that cannot be
# reached, and a Python script whose threads all wait for a long call to return must not be taken for it.
DEFAULT_PING_TIMEOUT = 120.0

_LENGTH = struct.Struct("<Q")
_READ_SIZE = 1 << 18


class ChannelLost(ConnectionError):
    """The executor is gone, or cannot be reached."""


def connect(environ: Mapping[str, str]) -> Channel:
    """Open the channel that the environment names.

    Raises
    ------
    ChannelLost
        Nothing answers there, or the address is not one.
    """
    address = environ.get(CHANNEL, "")
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return UnixChannel(rest)
    rank, _, service = rest.partition(":")
    if scheme == "flux" and rank.isdecimal() and service:
        from parsl_flux_bulk.worker.channel_flux import FluxChannel

        return FluxChannel(
            int(rank),
            service,
            library=environ.get(LIBFLUX, ""),
            ping=float(environ.get(PING) or DEFAULT_PING),
            ping_timeout=float(environ.get(PING_TIMEOUT) or DEFAULT_PING_TIMEOUT),
        )
    raise ChannelLost(f"{CHANNEL} is {address!r}: expected unix:PATH or flux:RANK:SERVICE")


class Channel:
    """What the transports have in common. Belongs to one thread; every method raises ChannelLost."""

    def __init__(self) -> None:
        self._received: list[bytes] = []

    def send(self, body: bytes) -> None:
        """Send a message. Blocks while the system's buffers are full, never for the executor to act."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when `receive` has something to do.

        It may do so edge-triggered: call `receive` once after every wake-up.
        """
        raise NotImplementedError

    def timeout(self) -> float | None:
        """Return the seconds after which `receive` wants to be called though nothing is readable."""
        return None

    def receive(self) -> list[bytes]:
        """Return every message that is complete, without waiting."""
        self._received += self._read()
        received, self._received = self._received, []
        return received

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a message for at most `timeout` seconds; return whether `receive` has one."""
        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        while True:
            self._received += self._read()
            left = None if end is None else end - time.monotonic()
            if self._received or (left is not None and left <= 0):
                return bool(self._received)
            own = self.timeout()
            left = own if left is None else left if own is None else min(left, own)
            poll.poll(None if left is None else max(0.0, left * 1000))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing that was sent can be lost by our exit; return whether that is so."""
        return True

    def close(self) -> None:
        """Close; may be called twice."""
        raise NotImplementedError

    def _read(self) -> list[bytes]:
        """Return what is complete; raise ChannelLost only once all that came before was received."""
        raise NotImplementedError


class UnixChannel(Channel):
    """A Unix stream socket; each message follows its length, a u64, little-endian."""

    def __init__(self, path: str) -> None:
        super().__init__()
        import socket

        self._dontwait = socket.MSG_DONTWAIT
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ChannelLost(f"cannot connect to the executor's socket {path}: {error}") from error
        self._partial = bytearray()
        self._closed = False

    def send(self, body: bytes) -> None:
        try:
            if len(body) < _READ_SIZE:
                self._socket.sendall(_LENGTH.pack(len(body)) + body)
            else:
                self._socket.sendall(_LENGTH.pack(len(body)))
                self._socket.sendall(body)
        except OSError as error:
            raise ChannelLost(f"the executor closed its socket: {error}") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> list[bytes]:
        messages: list[bytes] = []
        while not self._closed:
            try:
                data = self._socket.recv(_READ_SIZE, self._dontwait)
            except BlockingIOError:
                return messages
            except OSError:
                data = b""
            if not data:
                self._closed = True
            self._partial += data
            self._split(messages)
        if not messages and not self._received:
            raise ChannelLost("the executor closed its socket")
        return messages

    def _split(self, messages: list[bytes]) -> None:
        partial, start = self._partial, 0
        while len(partial) - start >= _LENGTH.size:
            body = start + _LENGTH.size
            end = body + _LENGTH.unpack_from(partial, start)[0]
            if end > len(partial):
                break
            with memoryview(partial) as view:
                messages.append(bytes(view[body:end]))
            start = end
        if start:
            del partial[:start]
