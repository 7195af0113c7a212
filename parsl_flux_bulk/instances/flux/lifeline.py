"""Start a process that notices the end of this one: its standard input closes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import weakref
from collections.abc import Sequence
from typing import IO, Any, cast


class Lifeline:
    """A process in its own session, and the write end of its standard input.

    The kernel closes the pipe when this process ends, also by SIGKILL. A fork of this process closes its
    copy of the pipe at once.

    Attributes
    ----------
    process : subprocess.Popen
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, **options
        )
        # `register_at_fork` keeps its callbacks for ever: a weak one.
        close = weakref.WeakMethod(self.close)
        os.register_at_fork(after_in_child=lambda: (call := close()) and call())

    def close(self, last: bytes = b"") -> None:
        """Close the pipe, after writing `last`; may be called twice."""
        pipe = cast("IO[bytes]", self.process.stdin)
        if not pipe.closed:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(last)
            pipe.close()


class Guard:
    """A shell that waits for the end of this process and then acts, unless it was dismissed.

    Parameters
    ----------
    script : str
        Begins with ``read -r _ && exit``, or has that line.
    arguments : str
        Of the script.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        command = ["sh", "-c", script, "sh", *arguments]
        self._lifeline = Lifeline(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def dismiss(self) -> None:
        """End the guard without acting."""
        self._lifeline.close(b"done\n")
        self._lifeline.process.wait()
