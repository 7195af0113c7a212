"""A rank of a task job: one call, made in the main thread of this very process, as MPI needs it."""

from __future__ import annotations

import _thread
import faulthandler
import os
import signal

from parsl_flux_bulk import wire
from parsl_flux_bulk.worker import channel as channels
from parsl_flux_bulk.worker import peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

WATCH_DELAY = 10.0
"""Seconds that a call must take for the executor's death meanwhile to be watched for."""

FLUSH_BOUND = 600.0
"""Seconds that an outcome may take to arrive, before this process ends regardless."""


def main() -> int:
    """Get the call, make it, send its outcome; return the exit status."""
    environ = dict(os.environ)
    channel = channels.connect(environ)
    channel.send(peer.hello(environ, slots=0))
    peer.forget_environment()
    peer.close_stdin()
    faulthandler.enable()
    from parsl_flux_bulk import codec  # while the executor answers

    function_payload = b""
    while True:
        channel.wait()
        for message in channel.receive():
            for kind, _, id, payload in wire.frames(message):
                if kind == wire.SETUP:
                    peer.set_up(wire.decode_json(payload))
                elif kind == wire.FUNCTION:
                    function_payload = bytes(payload)
                elif kind == wire.RETIRE:
                    return 0
                elif kind == wire.TASK:
                    finished = watch(environ)
                    try:
                        function = codec.load_function(function_payload)
                    except BaseException as error:
                        outcome = codec.function_failure(error)
                    else:
                        outcome = codec.run(function, payload[wire.FUNCTION_ID_SIZE :])
                    finished.release()
                    peer.flush_stdio()
                    send_outcome(channel, id, outcome)
                    return 0


def send_outcome(channel: channels.Channel, task_id: int, outcome: bytes) -> None:
    """Send the outcome, and wait until it cannot be lost any more."""
    from parsl_flux_bulk import codec

    if len(outcome) > wire.MAX_PAYLOAD:
        outcome = codec.raised(OverflowError(wire.too_long("result", len(outcome))))
    channel.send(wire.encode(wire.OUTCOME, 0, task_id, outcome))
    channel.flush(FLUSH_BOUND)
    channel.close()


def watch(environ: Mapping[str, str]) -> _thread.LockType:
    """End this process and its own children when the executor dies during a long call.

    Returns
    -------
    lock
        To be released when the call has ended.
    """
    finished = _thread.allocate_lock()
    finished.acquire()
    # Not threading.Thread: its module costs imports, and a short call costs no more than this line.
    _thread.start_new_thread(_watch, (environ, finished))
    return finished


def _watch(environ: Mapping[str, str], finished: _thread.LockType) -> None:
    if finished.acquire(timeout=float(environ.get(channels.PING) or WATCH_DELAY)):
        return
    try:
        # A connection of our own: the other belongs to the thread that makes the call.
        channel = channels.connect(environ)
        channel.flush()
        channel.wait()
    except channels.ChannelLost as error:
        if finished.locked():
            try:
                os.write(2, f"worker: ending, since {error}\n".encode())
            except OSError:
                pass  # whoever read it is gone, too
            # As leader of a process group, as Flux starts us, this ends what the call has started too.
            (os.killpg if os.getpgrp() == os.getpid() else os.kill)(os.getpid(), signal.SIGKILL)
