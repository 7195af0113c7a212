"""Notice that a full disk may have cut a job's output off. Used by the Flux and the embedded instance.

Flux's shell goes on when it cannot write a job's output, and programs ignore such errors, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

OUTPUT_CUT = "output"
"""The `exception` of a job that ended well, but whose output may be cut off."""

_DEV_FULL = os.makedev(1, 7)
_BLOCK = 512
"""File systems have blocks of a multiple of this size; a file that a full disk cuts off ends with a block."""


def is_full(place: str | int) -> bool:
    """Tell whether there is no space left where a path or a descriptor is. Raises OSError."""
    space = os.statvfs(place)
    # Without blocks, as in /proc, there is no disk.
    return bool(space.f_blocks) and not space.f_bavail


def no_space(path: str) -> str:
    """Return the note on a job whose output may be cut off."""
    return f"no space left for {path!r}: output may be missing. Free some space, and run the job again"


def may_be_cut(size: int) -> bool:
    """Tell whether a file of this size may have been cut off by a full disk."""
    return not size % _BLOCK


def cut_off(paths: Iterable[str]) -> str:
    """Return why one of these files may lack output; "" if no disk is full."""
    for path in paths:
        try:
            info = os.stat(path)
            if stat.S_ISCHR(info.st_mode):
                full = info.st_rdev == _DEV_FULL
            else:
                full = may_be_cut(info.st_size) and is_full(path)
        except OSError:
            continue  # not visible here: a file of another node, or removed by the job
        if full:
            return no_space(path)
    return ""
