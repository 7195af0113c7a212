"""Read jobspecs: files, JSON text and Python objects."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from typing import Any

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec import Jobspec

SIZE_LIMIT = 64 << 20
"""Bytes of a jobspec file at most. Flux itself takes much less."""

_CHUNK = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: True, "a device"),
)


def read_jobspec(path: str | os.PathLike[str]) -> Jobspec:
    """Read a jobspec file.

    Raises
    ------
    JobspecError
        If the file is not a valid jobspec; says where in it, and why.
    OSError
        If the file cannot be read. Only regular files are read: a FIFO or a device may block, or never end.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise OSError(
            errno.EINVAL, "a path cannot contain a null character; separate paths by newlines", name
        )
    _check_kind(os.stat(name).st_mode, name)
    # Not blocking, in case that the file is replaced by a FIFO in the meantime.
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _check_kind(status.st_mode, name)
        # A buffer of the file's size: one of the limit's would cost more than the rest.
        size = min(status.st_size, SIZE_LIMIT)
        text = os.read(descriptor, size + 1)
        # More only of a file that has grown, or whose size the file system does not tell, as that of /proc.
        while text and size != len(text) <= SIZE_LIMIT and (chunk := os.read(descriptor, _CHUNK)):
            text += chunk
    finally:
        os.close(descriptor)
    if len(text) > SIZE_LIMIT:
        raise JobspecError(f"longer than {SIZE_LIMIT >> 20} MiB, which no jobspec is")
    return Jobspec.parse(text)


def _check_kind(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        kind = next(kind for check, kind in _KINDS if check(mode))
        raise OSError(errno.EINVAL, f"{kind}; a jobspec must be in a regular file", name)


def parse_jobspec(jobspec: str | Mapping[str, Any]) -> Jobspec:
    """Parse JSON text, or the object itself.

    Raises
    ------
    JobspecError
        If the jobspec is not valid; says where in it, and why.
    """
    if not isinstance(jobspec, str):
        return Jobspec.parse(_as_text(jobspec))
    if not jobspec.lstrip("\ufeff \t\r\n").startswith("{"):
        raise JobspecError(f"{shorten(jobspec)!r} is not a JSON object; a file is given as a pathlib.Path")
    return Jobspec.parse(jobspec)


def _as_text(jobspec: Mapping[str, Any]) -> str:
    try:
        return json.dumps(jobspec, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobspecError(f"cannot be written as JSON: {error}") from error


def shorten(text: str) -> str:
    """Return the beginning of a text, for messages."""
    return text if len(text) <= 60 else text[:59] + "…"
