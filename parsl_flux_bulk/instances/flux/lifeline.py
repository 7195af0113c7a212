"""Start a process that notices the end of this one: its standard input closes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from typing import IO, Any


class Lifeline:
    """A process in its own session, and the write end of its standard input.

    The kernel closes the pipe when this process ends, also by SIGKILL. A fork of this process closes its
    copy of the pipe at once.

    Attributes
    ----------
    process : subprocess.Popen
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        read, write = os.pipe()
        self._pipe = open(write, "wb", buffering=0)  # noqa: SIM115
        try:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdin=read, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
            )
        except BaseException:
            self.close()
            raise
        finally:
            os.close(read)
        _close_in_forks(self)

    def close(self, last: bytes = b"") -> None:
        """Close the pipe, after writing `last`; may be called twice."""
        if not self._pipe.closed:
            with contextlib.suppress(BrokenPipeError):
                self._pipe.write(last)
            self._pipe.close()


def _close_in_forks(lifeline: Lifeline) -> None:
    reference: weakref.ref[Any] = weakref.ref(lifeline)

    def close() -> None:
        lifeline = reference()
        if lifeline is not None:
            lifeline.close()

    os.register_at_fork(after_in_child=close)
