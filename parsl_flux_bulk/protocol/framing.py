"""Frame messages on a stream socket: u64 length, little-endian, then the bytes.

Used between the executor and the processes of jobs on its node, and between the client and the server of the
embedded instance. Standard library only: the server imports this module.
"""

from __future__ import annotations

import socket
import struct

LENGTH = struct.Struct("<Q")

_CREDENTIALS = struct.Struct("3i")
"""``struct ucred`` of unix(7): pid, uid, gid."""


def user_of(sock: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid


def frame(body: bytes) -> bytes:
    """Return a message with its length before it; for blocking sockets."""
    return LENGTH.pack(len(body)) + body


def take_messages(received: bytearray) -> list[bytes]:
    """Remove the complete messages from the front of what was received, and return them."""
    messages, start, size = [], 0, len(received)
    with memoryview(received) as view:
        while size - start >= LENGTH.size:
            body = start + LENGTH.size
            end = body + LENGTH.unpack_from(view, start)[0]
            if end > size:
                break
            messages.append(bytes(view[body:end]))
            start = end
    del received[:start]
    return messages
