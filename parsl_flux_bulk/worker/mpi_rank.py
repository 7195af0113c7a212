"""A rank of a task job: one call, made in the main thread of this very process, as MPI needs it."""

from __future__ import annotations

import _thread
import faulthandler
import os
import signal

from parsl_flux_bulk.protocol import frames, variables
from parsl_flux_bulk.worker import channel as channels
from parsl_flux_bulk.worker import handshake

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
    channel.send(handshake.hello(environ, slots=0))
    handshake.forget_environment()
    handshake.close_stdin()
    faulthandler.enable()
    from parsl_flux_bulk.protocol import serialize  # while the executor answers

    function_payload = b""
    while True:
        channel.wait()
        for message in channel.receive():
            for kind, _, id, payload in frames.decode(message):
                if kind == frames.SETUP:
                    handshake.set_up(frames.decode_json(payload))
                elif kind == frames.FUNCTION:
                    function_payload = bytes(payload)
                elif kind == frames.RETIRE:
                    return 0
                elif kind == frames.TASK:
                    finished = watch(environ)
                    try:
                        function = serialize.loads(function_payload)
                    except BaseException as error:
                        outcome = serialize.not_deserializable("function", error)
                    else:
                        outcome = serialize.run(function, payload[frames.FUNCTION_ID_SIZE :])
                    finished.release()
                    handshake.flush_stdio()
                    send_outcome(channel, id, outcome)
                    return 0


def send_outcome(channel: channels.Channel, task_id: int, outcome: bytes) -> None:
    """Send the outcome, and wait until it cannot be lost any more."""
    channel.send(frames.encode(frames.OUTCOME, 0, task_id, outcome))
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
    if finished.acquire(timeout=float(environ.get(variables.PING) or WATCH_DELAY)):
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
