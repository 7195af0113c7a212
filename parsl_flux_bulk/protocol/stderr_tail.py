"""The last lines of a job's standard error, which its error message quotes. Standard library only."""

from __future__ import annotations

import os
import stat

TAIL_LINES = 20
TAIL_BYTES = 4096


def last_lines(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a text, without a newline at the end."""
    return "\n".join(text.splitlines()[-lines:])


def read_tail(path: str, start: int = 0) -> str:
    """Return the last lines of a regular file, `TAIL_BYTES` at most; "" if it is none or cannot be read.

    Parameters
    ----------
    start : int
        Bytes at the beginning of the file that are skipped.
    """
    try:
        # Not blocking: a job may have named a FIFO.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            begin = max(start, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(begin)
            data = file.read(TAIL_BYTES)
    except OSError:
        return ""
    text = data.decode(errors="replace")
    if begin > start and "\n" in text.rstrip("\n"):
        text = text.partition("\n")[2]  # the first line has probably lost its beginning
    return last_lines(text)
