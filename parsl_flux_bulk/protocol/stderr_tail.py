"""The last lines of a job's standard error, which its error message quotes. Standard library only."""

from __future__ import annotations

import os

TAIL_LINES = 20
TAIL_BYTES = 4096


def last_lines(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a text, without a newline at the end."""
    return "\n".join(text.splitlines()[-lines:])


def read_tail(path: str, start: int = 0) -> str:
    """Return the last lines of a file, `TAIL_BYTES` at most; "" if the file cannot be read.

    Parameters
    ----------
    start : int
        Bytes at the beginning of the file that are skipped.
    """
    try:
        with open(path, "rb") as file:
            begin = max(start, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(begin)
            data = file.read(TAIL_BYTES)
    except OSError:
        return ""
    text = data.decode(errors="replace")
    if begin > start and "\n" in text.rstrip("\n"):
        text = text.partition("\n")[2]  # the first line has probably lost its beginning
    return last_lines(text)
