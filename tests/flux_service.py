"""The executor's end of the channel over Flux, for tests: registers a service and does what peers say.

Prints its service's name, then one line for each message. A body of ``close``, ``die`` or ``mute`` is obeyed,
any other is echoed. The first message is answered with the contents of the file that is its argument.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import flux
import flux.constants
from flux.core.inner import ffi, raw


def main(answer: bytes, folder: Path) -> None:
    handle = flux.Flux()
    name = f"test-{os.getpid()}"
    handle.service_register(name).get()
    streams: dict[object, object] = {}
    mute = False
    # Stays open: ext4 flushes a truncated file when it is closed, which takes milliseconds on a busy disk.
    last = (folder / "last").open("wb", buffering=0)

    def body_of(message: object) -> bytes:
        data, size = ffi.new("void **"), ffi.new("size_t *")
        raw.request_decode_raw(message.handle, ffi.NULL, data, size)
        return bytes(ffi.buffer(data[0], size[0])) if size[0] else b""

    def respond(message: object, body: bytes) -> None:
        raw.respond_raw(handle.handle, message.handle, body, len(body))

    def on_message(_handle: object, _watcher: object, message: object, _args: object) -> None:
        nonlocal mute
        what = message.topic.rpartition(".")[2]
        sender = raw.flux_msg_route_first(message.handle)
        if what == "open":
            streams[sender] = message
            respond(message, answer)
        elif what == "send":
            body = body_of(message)
            if body == b"die":
                os._exit(0)
            elif body == b"mute":
                mute = True
            elif body == b"close":
                raw.respond_error(handle.handle, streams[sender].handle, 61, ffi.NULL)  # ENODATA
            else:
                last.seek(0)
                last.write(body)
                last.truncate()
                respond(streams[sender], body)
        elif what == "ping" and not mute:
            respond(message, b"")
        print(what, flush=True)

    watcher = handle.msg_watcher_create(on_message, flux.constants.FLUX_MSGTYPE_REQUEST, f"{name}.*")
    watcher.start()
    print(name, flush=True)
    handle.reactor_run()


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]))
