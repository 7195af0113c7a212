"""A rank of a task job: makes one call in the main thread of its process, as MPI needs it."""

from __future__ import annotations

import _thread
import os
import signal
import time

from parsl_flux_bulk.protocol import frames, instance_uri, variables
from parsl_flux_bulk.worker import handshake, lifeline, walltime
from parsl_flux_bulk.worker.channel import ChannelLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

WATCH_DELAY = 10.0
"""Seconds that a call must take before the rank starts to watch for the death of the executor."""

FLUSH_TIMEOUT = 600.0
"""Longest time (s) to wait for an outcome to arrive before the process exits regardless."""


def main() -> int:
    """Receive the call, make it, send the outcome; return the exit status."""
    lifeline.die_with_parent(os.getppid())
    environ = dict(os.environ)
    channel = handshake.introduce(environ)
    handshake.prepare_for_user_code()
    handshake.set_worker_variables(
        int(environ.get("FLUX_TASK_RANK") or 0), int(environ.get("FLUX_JOB_SIZE") or 1)
    )
    if "PMI_FD" not in environ:
        handshake.hide_launcher()  # one rank, which needs no launcher
    if variables.OUTER_URI not in environ:
        instance_uri.hide(os.environ)
    pid, group = os.getpid(), os.getpgrp()
    # Flux makes a rank the leader of a group, and so does the embedded instance.
    guard = lifeline.start_guard(lambda: [group]) if group == pid else -1
    import parsl_flux_bulk.protocol.serialize  # noqa: F401 (while the executor answers)

    function_payload = b""
    while True:
        channel.wait()
        for message in channel.receive():
            for kind, _, id, payload in frames.decode(message):
                if kind == frames.SETUP:
                    handshake.extend_sys_path(frames.decode_json(payload))
                elif kind == frames.FUNCTION:
                    function_payload = bytes(payload)
                elif kind == frames.RETIRE:
                    return 0
                elif kind == frames.TASK:
                    call_ended = watch_executor(environ)
                    started = time.time()
                    outcome = make_call(function_payload, payload[frames.FUNCTION_ID_SIZE :], group)
                    ended = time.time()
                    if os.getpid() != pid:
                        os._exit(0)  # the task forked, and this is the copy
                    call_ended.release()
                    handshake.flush_stdio()
                    channel.send(frames.encode_outcome(0, id, started, ended, outcome))
                    channel.flush(FLUSH_TIMEOUT)
                    channel.close()
                    if guard >= 0:
                        os.write(guard, b"x")
                    return 0


def make_call(function_payload: bytes, call: memoryview, group: int) -> bytes:
    """Make a call and return the outcome; a watchdog kills the process group if it exceeds its walltime."""
    from parsl_flux_bulk.protocol import serialize

    seconds, call = serialize.split_walltime(call)
    watchdog = -1
    if seconds is not None and group == os.getpid():
        # Before the function's modules are imported, of which some do not allow a fork.
        watchdog = lifeline.start_watchdog(group, max(0.0, seconds) + walltime.GRACE)
    try:
        function = serialize.loads(function_payload)
    except BaseException as error:
        return serialize.not_deserializable("function", error)
    if seconds is None:
        return serialize.run(function, call)
    if watchdog < 0:
        return walltime.run(seconds, function, call)
    os.write(watchdog, b"b")
    try:
        return walltime.run(seconds, function, call)
    finally:
        os.write(watchdog, b"e")


def watch_executor(environ: Mapping[str, str]) -> _thread.LockType:
    """End this process and its children if the executor dies during a long call.

    Returns
    -------
    lock
        To release when the call has ended.
    """
    call_ended = _thread.allocate_lock()
    call_ended.acquire()
    # threading.Thread would cost imports; a short call pays for no more than this line.
    _thread.start_new_thread(_watch, (environ, call_ended))
    return call_ended


def _watch(environ: Mapping[str, str], call_ended: _thread.LockType) -> None:
    if call_ended.acquire(timeout=float(environ.get(variables.PING) or WATCH_DELAY)):
        return
    try:
        # A second connection: the first belongs to the thread that makes the call.
        channel = handshake.connect(environ)
        channel.flush()
        channel.wait()
    except ChannelLost as error:
        if call_ended.locked():
            try:
                os.write(2, f"worker: ending, since {error}\n".encode())
            except OSError:
                pass  # the reader of stderr has ended, too
            # Flux makes a rank the leader of a process group, which holds what the call has started.
            (os.killpg if os.getpgrp() == os.getpid() else os.kill)(os.getpid(), signal.SIGKILL)
