"""The channel over Flux: requests to a service of the executor, called through ctypes.

libflux-core is present wherever Flux is; the Python bindings may be missing. Messages are sent and received
directly, without libflux futures, which would need a reactor as the only event loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_void_p

from parsl_flux_bulk.worker.channel import Channel, ChannelLost

_SONAME = "libflux-core.so.2"

# From flux/core.h: message.h, rpc.h, handle.h.
_MSGTYPE_ANY = 0x0F
_MSGFLAG_NORESPONSE = 0x04
_MSGFLAG_STREAMING = 0x40
_O_NONBLOCK = 4
# No future uses this handle, so any match tag may be used.
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
    """Requests to the service that the executor registered with its broker, and the responses.

    Parameters
    ----------
    rank, service
        Rank of the executor's broker, and name of the service.
    uri
        Of the instance; "" for the one in ``FLUX_URI``.
    library
        Path of libflux-core to try first.
    ping, ping_timeout
        In seconds, see `variables.PING` and `variables.PING_TIMEOUT`. Pings are needed because Flux
        answers a request that comes after the death of its receiver, but not one that came before.
    """

    def __init__(
        self, rank: int, service: str, *, uri: str, library: str, ping: float, ping_timeout: float
    ) -> None:
        super().__init__()
        self._rank = rank
        self._topic = {name: f"{service}.{name}".encode() for name in ("open", "send", "ping")}
        self._lib = load_library(library)
        self._match = _Match(_MSGTYPE_ANY, _TAG_NONE, None)
        error = ctypes.create_string_buffer(160)
        self._handle = self._lib.flux_open_ex(uri.encode() or None, 0, error)
        if not self._handle:
            raise ChannelLost(f"cannot connect to Flux: {error.value.decode(errors='replace')}")
        self._pollfd: int = self._lib.flux_pollfd(self._handle)
        self._data = ctypes.c_void_p()
        self._size = ctypes.c_size_t()
        self._tag = ctypes.c_uint32()
        self._out = (ctypes.byref(self._data), ctypes.byref(self._size), ctypes.byref(self._tag))
        self._ping = ping
        self._ping_timeout = ping_timeout
        self._heard_at = time.monotonic()
        self._ping_sent_at: float | None = None
        self._last_ping_at = 0.0
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
        if self._ping_sent_at is None:
            due = self._heard_at + self._ping
        else:
            due = min(self._ping_sent_at + self._ping_timeout, self._last_ping_at + self._ping)
        return max(0.0, due - time.monotonic())

    def flush(self, timeout: float | None = None) -> bool:
        # Messages keep their order: the answer to this request shows that all earlier ones arrived.
        self._flushed = False
        self._request("ping", b"", 0, _TAG_FLUSH)
        self._wait_for(lambda: self._flushed or bool(self._lost), timeout)
        return self._flushed

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
        lib.flux_pollevents(self._handle)  # arms the edge trigger for messages that arrive later
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
            self._ping_sent_at, self._heard_at = None, time.monotonic()
        if failed:
            self._lost = f"the executor has ended: {self._error()}"
        elif self._tag.value == _TAG_OPEN:
            messages.append(ctypes.string_at(self._data.value or 0, self._size.value))

    def _keep_alive(self, heard: bool) -> None:
        now = time.monotonic()
        if heard:
            self._ping_sent_at, self._heard_at = None, now
        elif self._ping_sent_at is None:
            if now - self._heard_at >= self._ping:
                self._ping_sent_at = now
                self._send_ping(now)
        elif now - self._ping_sent_at >= self._ping_timeout:
            self._lost = f"the executor did not answer within {self._ping_timeout:g} s"
        elif now - self._last_ping_at >= self._ping:
            # An executor that died with the first request never answers it; Flux rejects this one at once.
            self._send_ping(now)

    def _send_ping(self, now: float) -> None:
        self._last_ping_at = now
        self._request("ping", b"", 0, _TAG_PING)

    def _error(self) -> str:
        return os.strerror(ctypes.get_errno())


def load_library(preferred: str) -> ctypes.CDLL:
    """Load libflux-core, from the preferred path if possible, and declare the functions used."""
    for path in filter(None, (preferred, _SONAME)):
        try:
            lib = ctypes.CDLL(path, use_errno=True)
            break
        except OSError as error:  # the preferred one may be built for another system than this node's
            reason = error
    else:
        raise ChannelLost(
            f"cannot load {_SONAME}: {reason}; set LD_LIBRARY_PATH in the job's environment to its directory"
        )
    for name, result, arguments in _PROTOTYPES:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
