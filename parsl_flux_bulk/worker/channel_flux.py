"""A job's process's own end of the channel over Flux.

libflux-core is used through ctypes: it is there wherever Flux is, while the Python bindings need not be.
Requests and responses are written and read directly, without libflux's futures: those bring a reactor with
them, which wants to be the only event loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import time
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_void_p

from parsl_flux_bulk.worker.channel import Channel, ChannelLost

_SONAME = "libflux-core.so.2"

# From flux/core.h: message.h, rpc.h, handle.h.
_MSGTYPE_ANY = 0x0F
_MSGFLAG_NORESPONSE = 0x04
_MSGFLAG_STREAMING = 0x40
_O_NONBLOCK = 4
# The handle is ours alone and no future is ever made of it, so that match tags are free to choose.
_TAG_NONE, _TAG_OPEN, _TAG_PING, _TAG_FLUSH = 0, 1, 2, 3


class _Match(ctypes.Structure):
    """``struct flux_match``."""

    _fields_ = (("typemask", c_int), ("matchtag", c_uint32), ("topic_glob", c_char_p))


_PROTOTYPES = (
    ("flux_open_ex", c_void_p, (c_char_p, c_int, c_char_p)),
    ("flux_close", None, (c_void_p,)),
    ("flux_pollfd", c_int, (c_void_p,)),
    ("flux_pollevents", c_int, (c_void_p,)),
    ("flux_send", c_int, (c_void_p, c_void_p, c_int)),
    ("flux_recv", c_void_p, (c_void_p, _Match, c_int)),
    ("flux_request_encode_raw", c_void_p, (c_char_p, c_char_p, c_size_t)),
    ("flux_response_decode_raw", c_int, (c_void_p, c_void_p, POINTER(c_void_p), POINTER(c_size_t))),
    ("flux_msg_set_nodeid", c_int, (c_void_p, c_uint32)),
    ("flux_msg_set_matchtag", c_int, (c_void_p, c_uint32)),
    ("flux_msg_get_matchtag", c_int, (c_void_p, POINTER(c_uint32))),
    ("flux_msg_set_flag", c_int, (c_void_p, c_int)),
    ("flux_msg_destroy", None, (c_void_p,)),
)


class FluxChannel(Channel):
    """Requests to the service that the executor registered with its broker, and the responses to them.

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
        self._rank = rank
        self._topic = {name: f"{service}.{name}".encode() for name in ("open", "send", "ping")}
        self._lib = load_library(library)
        self._match = _Match(_MSGTYPE_ANY, _TAG_NONE, None)
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
        self._asked_last = 0.0
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
        if self._asked is None:
            due = self._heard + self._ping
        else:
            due = min(self._asked + self._ping_timeout, self._asked_last + self._ping)
        return max(0.0, due - time.monotonic())

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
                if ctypes.get_errno() != errno.EAGAIN:
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
            messages.append(ctypes.string_at(self._data.value or 0, self._size.value))

    def _keep_alive(self, heard: bool) -> None:
        now = time.monotonic()
        if heard:
            self._asked, self._heard = None, now
        elif self._asked is None:
            if now - self._heard >= self._ping:
                self._asked = now
                self._ask(now)
        elif now - self._asked >= self._ping_timeout:
            self._lost = f"the executor did not answer within {self._ping_timeout:g} s"
        elif now - self._asked_last >= self._ping:
            # Had it died with the first, that would never be answered; one that comes later is, at once.
            self._ask(now)

    def _ask(self, now: float) -> None:
        self._asked_last = now
        self._request("ping", b"", 0, _TAG_PING)

    def _error(self) -> str:
        return os.strerror(ctypes.get_errno())


def load_library(preferred: str) -> ctypes.CDLL:
    """Load libflux-core, from the path that is preferred if that works; declare what we call of it."""
    try:
        lib = _open_library(preferred)
    except OSError as error:
        raise ChannelLost(
            f"cannot load {_SONAME}: {error}; set LD_LIBRARY_PATH in the job's environment to where it is"
        ) from error
    for name, result, arguments in _PROTOTYPES:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _open_library(preferred: str) -> ctypes.CDLL:
    if preferred and os.path.exists(preferred):
        try:
            return ctypes.CDLL(preferred, use_errno=True)
        except OSError:
            pass  # built for another system than this node's: its own may still do
    return ctypes.CDLL(_SONAME, use_errno=True)
