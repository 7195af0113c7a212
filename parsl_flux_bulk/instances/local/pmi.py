"""PMI-1 for the tasks of one job, so that programs built with MPICH find each other. Runs in the server.

Every task has a socket, whose number is in ``PMI_FD``, and sends lines such as ``cmd=get kvsname=k key=a``.
What tasks put is theirs to get once all of them have entered a barrier.

Programs built with Open MPI 4 leave the protocol to Flux's library, which ``FLUX_PMI_LIBRARY_PATH`` names.

See also
--------
RFC 13, https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_13.html
"""

from __future__ import annotations

import functools
import glob
import os
import selectors
import socket
from collections.abc import Callable
from functools import partial

DESCRIPTOR = 3
"""The number that the socket has in a task: the first one after the standard streams."""

_READ = 1 << 16
_LONGEST_LINE = 1 << 16
"""Bytes of a line at most; longer ones are no PMI."""

_KEY_MAX, _VALUE_MAX = 64, 1024

_Fields = dict[str, str]

LIBRARY_VARIABLE = "FLUX_PMI_LIBRARY_PATH"


@functools.cache
def flux_library() -> str:
    """Return the path of Flux's PMI library; "" where Flux is not installed."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:  # by Flux's shell, in a node job
        return named
    import shutil  # which the server imports once it is ready

    command = shutil.which("flux")
    if command is None:
        return ""
    prefix = glob.escape(os.path.dirname(os.path.dirname(os.path.realpath(command))))
    places = (f"{prefix}/lib*/flux/libpmi.so", f"{prefix}/lib/*/flux/libpmi.so")
    return next((path for place in places for path in glob.iglob(place)), "")


class PmiServer:
    """The key-value space and the barrier of one job.

    Parameters
    ----------
    name : str
        Of the key-value space.
    size : int
        Number of tasks.
    abort : callable
        Called when a task aborts the job, with its rank and the exit status.
    """

    def __init__(self, name: str, size: int, abort: Callable[[int, int], None]) -> None:
        self._name = name
        self._size = size
        self._abort = abort
        # All tasks are on one node: MPICH uses shared memory then.
        self._values = {"PMI_process_mapping": f"(vector,(0,1,{size}))"}
        self._in_barrier: set[int] = set()
        self._tasks: dict[int, socket.socket] = {}
        self._received: dict[int, bytes] = {}
        self._theirs: list[socket.socket] = []
        self._selector: selectors.BaseSelector | None = None
        self._commands: dict[str, Callable[[int, _Fields], str | None]] = {
            "init": self._init,
            "get_maxes": lambda *_: (
                f"cmd=maxes kvsname_max={_KEY_MAX} keylen_max={_KEY_MAX} vallen_max={_VALUE_MAX} rc=0"
            ),
            "get_appnum": lambda *_: "cmd=appnum appnum=0 rc=0",
            "get_universe_size": lambda *_: f"cmd=universe_size size={size} rc=0",
            "get_my_kvsname": lambda *_: f"cmd=my_kvsname kvsname={name} rc=0",
            "put": self._put,
            "get": self._get,
            "barrier_in": self._enter_barrier,
            "finalize": lambda *_: "cmd=finalize_ack rc=0",
            "abort": self._on_abort,
            # Services and new processes are for launchers.
            "publish_name": lambda *_: "cmd=publish_result rc=-1 msg=not_supported",
            "unpublish_name": lambda *_: "cmd=unpublish_result rc=-1 msg=not_supported",
            "lookup_name": lambda *_: "cmd=lookup_result rc=-1 msg=not_supported",
            "spawn": lambda *_: "cmd=spawn_result rc=-1 errmsg=not_supported",
        }

    def open(self, rank: int) -> tuple[int, dict[bytes, bytes]]:
        """Return the descriptor that a task is to inherit as `DESCRIPTOR`, and its variables."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._tasks[rank] = ours
        self._theirs.append(theirs)
        variables = {
            b"PMI_FD": b"%d" % DESCRIPTOR,
            b"PMI_RANK": b"%d" % rank,
            b"PMI_SIZE": b"%d" % self._size,
        }
        if library := flux_library():
            variables[LIBRARY_VARIABLE.encode()] = os.fsencode(library)
        return theirs.fileno(), variables

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Serve the tasks, which have inherited their descriptors by now."""
        for theirs in self._theirs:
            theirs.close()
        self._theirs.clear()
        self._selector = selector
        for rank, sock in self._tasks.items():
            selector.register(sock, selectors.EVENT_READ, partial(self._ready, rank))

    def close(self) -> None:
        """Close all sockets."""
        for rank in list(self._tasks):
            self._drop(rank)

    def _drop(self, rank: int) -> None:
        sock = self._tasks.pop(rank)
        if self._selector is not None:
            self._selector.unregister(sock)
        sock.close()

    def _ready(self, rank: int) -> None:
        try:
            data = self._tasks[rank].recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rest = (self._received.get(rank, b"") + data).split(b"\n")
        self._received[rank] = rest
        for line in lines:
            self._handle(rank, line.decode(errors="replace"))
        if rank in self._tasks and (not data or len(rest) > _LONGEST_LINE):
            self._drop(rank)

    def _handle(self, rank: int, line: str) -> None:
        fields = _parse(line)
        command = fields.get("cmd") or fields.get("mcmd", "")
        if handler := self._commands.get(command):
            reply = handler(rank, fields)
        elif "cmd" in fields:
            reply = f"cmd={command}_result rc=-1 msg=unknown_command"
        else:
            reply = None  # a line of a command that has several
        if reply is not None:
            self._send(rank, reply)

    def _send(self, rank: int, reply: str) -> None:
        sock = self._tasks.get(rank)
        if sock is None:
            return
        try:
            sock.sendall(reply.encode() + b"\n")
        except OSError:  # it has ended, or does not read
            self._drop(rank)

    # -- commands ------------------------------------------------------------------------------------

    def _init(self, rank: int, fields: _Fields) -> str:
        rc = 0 if fields.get("pmi_version") == "1" else -1
        return f"cmd=response_to_init pmi_version=1 pmi_subversion=1 rc={rc}"

    def _put(self, rank: int, fields: _Fields) -> str:
        key, value = fields.get("key", ""), fields.get("value", "")
        if fields.get("kvsname") != self._name or not key or len(value) > _VALUE_MAX:
            return "cmd=put_result rc=-1 msg=invalid"
        self._values[key] = value
        return "cmd=put_result rc=0 msg=success"

    def _get(self, rank: int, fields: _Fields) -> str:
        value = self._values.get(fields.get("key", ""))
        if fields.get("kvsname") != self._name or value is None:
            return "cmd=get_result rc=-1 msg=key_not_found"
        return f"cmd=get_result rc=0 msg=success value={value}"

    def _enter_barrier(self, rank: int, fields: _Fields) -> None:
        self._in_barrier.add(rank)
        if len(self._in_barrier) == self._size:
            self._in_barrier.clear()
            for task in list(self._tasks):
                self._send(task, "cmd=barrier_out rc=0")

    def _on_abort(self, rank: int, fields: _Fields) -> None:
        text = fields.get("exitcode", "")
        self._abort(rank, int(text) if text.isdecimal() and 0 < int(text) < 256 else 1)


def _parse(line: str) -> _Fields:
    """Return the fields of a line. A value may have spaces if it is the last one."""
    head, found, value = line.partition(" value=")
    fields = dict(word.split("=", 1) for word in head.split() if "=" in word)
    if found:
        fields["value"] = value
    return fields
