"""Frame messages on a stream socket: u64 length, little-endian, then the bytes.

The embedded instance uses this format between a process of a job and the executor, and between the client
and the server. Standard library only: the server imports this module.
"""

from __future__ import annotations

import struct

LENGTH = struct.Struct("<Q")


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
