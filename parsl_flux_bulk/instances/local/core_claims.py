"""Claim cores of this host, so that two embedded instances do not pin their jobs to the same ones.

A claim is a lock on one byte of a file of the user: the byte with the number of the core. The kernel releases
it when the server ends, however it ends. Runs in the server, once at its start.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Sequence

from parsl_flux_bulk.worker.pinning import SIBLINGS


class CoreClaims:
    """The cores that this process holds. Where the file cannot be opened, none can be claimed.

    Parameters
    ----------
    path : str
        See :func:`.machine.claims_path`.
    siblings : str
        Path of the file that lists all CPUs of the core of CPU ``{}``.
    """

    def __init__(self, path: str, siblings: str = SIBLINGS) -> None:
        self._siblings = siblings
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            # Never closed: to close a file releases all locks that the process holds on it.
            self._fd = os.open(path, flags, 0o600)
        except OSError:
            self._fd = -1

    def choose(self, usable: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
        """Choose cores, and claim as many of them as possible.

        Parameters
        ----------
        usable
            CPUs of each core.
        count : int
            If larger than the number of cores, cores are chosen several times.

        Returns
        -------
        list
            The CPUs of each core; those that could not be claimed are last, and have none.
        """
        most = min(count, len(usable))
        cores: list[Sequence[int]] = []
        for core in usable:
            if len(cores) < most and self._claim(core):
                cores.append(core)
        cores += [()] * (most - len(cores))
        return [cores[number % most] for number in range(count)]

    def _claim(self, core: Sequence[int]) -> bool:
        if self._fd < 0:
            return False
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._number(core))
        except OSError:
            return False
        return True

    def _number(self, core: Sequence[int]) -> int:
        """Return the lowest CPU of the core, which may be one that this process may not use."""
        try:
            with open(self._siblings.format(core[0])) as file:
                return min(map(int, re.findall(r"\d+", file.read())))
        except (OSError, ValueError):
            return core[0]
