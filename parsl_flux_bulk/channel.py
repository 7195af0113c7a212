"""A job's process's own end of the channel to the executor.

::

    connect(environ) ─> Channel   send, receive, wait, fileno for an event loop
                         ├─ UnixChannel   the embedded instance: a Unix stream socket
                         └─ FluxChannel   Flux: requests to, and responses from, the executor's service

A message is any bytes; see :mod:`parsl_flux_bulk.wire` for what is in them. The first message that is sent
introduces this process to the executor. Nothing is imported that the transport in use does not need, since
every process of every job pays for it, on a shared file system.

libflux-core is used through ctypes: it is there wherever Flux is, while the Python bindings need not be.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Mapping
    from typing import Any

ADDRESS = "PARSL_FLUX_BULK_CHANNEL"
"""Environment variable: ``unix:PATH`` or ``flux:RANK:SERVICE``."""

LIBFLUX = "PARSL_FLUX_BULK_LIBFLUX"
"""Environment variable: path of the executor's own libflux-core, tried first."""

PING = "PARSL_FLUX_BULK_PING"
"""Environment variable: seconds of silence after which the executor is asked for a sign of life."""

PING_TIMEOUT = "PARSL_FLUX_BULK_PING_TIMEOUT"
"""Environment variable: seconds that it may take to give one."""

DEFAULT_PING = 10.0
# An executor that is dead is told apart at once (ENOSYS). This bounds the rarer case of one that cannot be
# reached, and a Python script whose threads all wait for a long call to return must not be taken for it.
DEFAULT_PING_TIMEOUT = 120.0

_SONAME = "libflux-core.so.2"
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
    address = environ.get(ADDRESS, "")
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return UnixChannel(rest)
    rank, _, service = rest.partition(":")
    if scheme == "flux" and rank.isdecimal() and service:
        return FluxChannel(
            int(rank),
            service,
            library=environ.get(LIBFLUX, ""),
            ping=float(environ.get(PING) or DEFAULT_PING),
            ping_timeout=float(environ.get(PING_TIMEOUT) or DEFAULT_PING_TIMEOUT),
        )
    raise ChannelLost(f"{ADDRESS} is {address!r}: expected unix:PATH or flux:RANK:SERVICE")


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


# From flux/core.h: message.h, rpc.h, handle.h.
_MSGTYPE_RESPONSE = 0x02
_MSGTYPE_ANY = 0x0F
_MSGFLAG_NORESPONSE = 0x04
_MSGFLAG_STREAMING = 0x40
_O_NONBLOCK = 4
# The handle is ours alone and no future is ever made of it, so that match tags are free to choose.
_TAG_NONE, _TAG_OPEN, _TAG_PING, _TAG_FLUSH = 0, 1, 2, 3


class FluxChannel(Channel):
    """Requests to the service that the executor registered with its broker, and the responses to them.

    Requests and responses are written and read directly, without libflux's futures: those bring a reactor
    with them, which wants to be the only event loop.

    Parameters
    ----------
    rank, service
        The executor's broker, and the service's name.
    library
        Path of libflux-core to try first.
    ping, ping_timeout
        In seconds, see `PING` and `PING_TIMEOUT`. Needed since a request that its receiver took along
        into death is never answered, unlike one that comes later.
    """

    def __init__(self, rank: int, service: str, *, library: str, ping: float, ping_timeout: float) -> None:
        super().__init__()
        import ctypes

        self._ctypes = ctypes
        self._rank = rank
        self._topic = {name: f"{service}.{name}".encode() for name in ("open", "send", "ping")}
        self._lib, match = _load(library)
        self._match = match(_MSGTYPE_ANY, _TAG_NONE, None)
        error = ctypes.create_string_buffer(160)
        self._handle = self._lib.flux_open_ex(None, 0, error)
        if not self._handle:
            raise ChannelLost(f"cannot connect to Flux: {error.value.decode(errors='replace')}")
        self._pollfd: int = self._lib.flux_pollfd(self._handle)
        self._data = ctypes.c_void_p()
        self._size = ctypes.c_size_t()
        self._tag = ctypes.c_uint32()
        self._out = (ctypes.byref(self._data), ctypes.byref(self._size), ctypes.byref(self._tag))
        self._ping = ping
        self._ping_timeout = ping_timeout
        self._heard = time.monotonic()
        self._asked: float | None = None
        self._opened = False
        self._flushed = True
        self._lost = ""

    def send(self, body: bytes) -> None:
        if self._opened:
            self._request("send", body, _MSGFLAG_NORESPONSE, _TAG_NONE)
        else:
            self._request("open", body, _MSGFLAG_STREAMING, _TAG_OPEN)
            self._opened = True

    def fileno(self) -> int:
        return self._pollfd

    def timeout(self) -> float | None:
        since, bound = (self._heard, self._ping) if self._asked is None else (self._asked, self._ping_timeout)
        return max(0.0, since + bound - time.monotonic())

    def flush(self, timeout: float | None = None) -> bool:
        # Messages keep their order, so that an answer to this one shows that all before it arrived.
        self._flushed = False
        self._request("ping", b"", 0, _TAG_FLUSH)
        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._pollfd, select.POLLIN)
        while True:
            self._received += self._read()
            if self._flushed or self._lost or (end is not None and time.monotonic() >= end):
                return self._flushed
            own = self.timeout() or 0.0
            left = own if end is None else min(own, end - time.monotonic())
            poll.poll(max(0.0, left * 1000))

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            self._lib.flux_close(handle)

    def _request(self, name: str, body: bytes, flag: int, tag: int) -> None:
        lib = self._lib
        request = lib.flux_request_encode_raw(self._topic[name], body or None, len(body))
        try:
            if (
                not request
                or lib.flux_msg_set_nodeid(request, self._rank) < 0
                or lib.flux_msg_set_matchtag(request, tag) < 0
                or (flag and lib.flux_msg_set_flag(request, flag) < 0)
                or lib.flux_send(self._handle, request, 0) < 0
            ):
                raise ChannelLost(f"cannot send to the executor: {self._error()}")
        finally:
            lib.flux_msg_destroy(request)

    def _read(self) -> list[bytes]:
        messages: list[bytes] = []
        lib, flux_recv = self._lib, self._lib.flux_recv
        lib.flux_pollevents(self._handle)  # arms the edge trigger: anything later than this wakes us again
        while not self._lost:
            message = flux_recv(self._handle, self._match, _O_NONBLOCK)
            if not message:
                if self._ctypes.get_errno() != errno.EAGAIN:
                    self._lost = f"the connection to Flux broke: {self._error()}"
                break
            self._take(message, messages)
            lib.flux_msg_destroy(message)
        if not self._lost:
            self._keep_alive(bool(messages))
        if self._lost and not messages and not self._received:
            raise ChannelLost(self._lost)
        return messages

    def _take(self, message: int, messages: list[bytes]) -> None:
        data, size, tag = self._out
        if self._lib.flux_msg_get_matchtag(message, tag) < 0:
            return
        failed = self._lib.flux_response_decode_raw(message, None, data, size) < 0
        if self._tag.value == _TAG_FLUSH:
            self._flushed = True
        if self._tag.value in (_TAG_PING, _TAG_FLUSH):
            self._asked, self._heard = None, time.monotonic()
        if failed:
            self._lost = f"the executor is gone: {self._error()}"
        elif self._tag.value == _TAG_OPEN:
            messages.append(self._ctypes.string_at(self._data.value or 0, self._size.value))

    def _keep_alive(self, heard: bool) -> None:
        now = time.monotonic()
        if heard:
            self._asked, self._heard = None, now
        elif self._asked is None and now - self._heard >= self._ping:
            self._asked = now
            self._request("ping", b"", 0, _TAG_PING)
        elif self._asked is not None and now - self._asked >= self._ping_timeout:
            self._lost = f"the executor did not answer within {self._ping_timeout:g} s"

    def _error(self) -> str:
        return os.strerror(self._ctypes.get_errno())


def _load(library: str) -> tuple[Any, Any]:
    """Return libflux-core with its prototypes declared, and the type of ``struct flux_match``."""
    import ctypes
    from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_void_p

    class Match(ctypes.Structure):
        _fields_ = [("typemask", c_int), ("matchtag", c_uint32), ("topic_glob", c_char_p)]

    try:
        lib = _open_library([library] if library and os.path.exists(library) else [])
    except OSError as error:
        raise ChannelLost(
            f"cannot load {_SONAME}: {error}; set LD_LIBRARY_PATH in the job's environment to where it is"
        ) from error
    for name, result, arguments in (
        ("flux_open_ex", c_void_p, [c_char_p, c_int, c_char_p]),
        ("flux_close", None, [c_void_p]),
        ("flux_pollfd", c_int, [c_void_p]),
        ("flux_pollevents", c_int, [c_void_p]),
        ("flux_send", c_int, [c_void_p, c_void_p, c_int]),
        ("flux_recv", c_void_p, [c_void_p, Match, c_int]),
        ("flux_request_encode_raw", c_void_p, [c_char_p, c_char_p, c_size_t]),
        ("flux_response_decode_raw", c_int, [c_void_p, c_void_p, POINTER(c_void_p), POINTER(c_size_t)]),
        ("flux_msg_set_nodeid", c_int, [c_void_p, c_uint32]),
        ("flux_msg_set_matchtag", c_int, [c_void_p, c_uint32]),
        ("flux_msg_get_matchtag", c_int, [c_void_p, POINTER(c_uint32)]),
        ("flux_msg_set_flag", c_int, [c_void_p, c_int]),
        ("flux_msg_destroy", None, [c_void_p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib, Match


def _open_library(preferred: list[str]) -> ctypes.CDLL:
    import ctypes

    for path in preferred:
        try:
            return ctypes.CDLL(path, use_errno=True)
        except OSError:
            pass  # built for another system than this node's: its own may still do
    return ctypes.CDLL(_SONAME, use_errno=True)
