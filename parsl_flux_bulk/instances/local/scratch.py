"""The scratch directories of the embedded instance's jobs (``FLUX_JOB_TMPDIR``)."""

from __future__ import annotations

import os
import stat

from parsl_flux_bulk.instances.local.processes import job_tmpdir

_MODE = 0o700

_UNUSED = 1
"""Time of last modification (seconds since the epoch) of a directory in which nothing was made yet."""


class ScratchDirectories:
    """Makes and removes them; those that stayed empty serve again, which costs less.

    Attributes
    ----------
    directory : str
        The instance's private one, in which they are.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._empty: list[tuple[str, int]] = []  # path, permissions

    def make(self, job_id: int) -> str:
        """Make the directory of a job; return its path."""
        path = job_tmpdir(self.directory, job_id)
        if self._empty:
            before, mode = self._empty.pop()
            os.rename(before, path)
            if mode != _MODE:  # changed by the last job
                os.chmod(path, _MODE)
        else:
            os.mkdir(path, _MODE)
            os.utime(path, (_UNUSED, _UNUSED))
        return path

    def remove(self, job_id: int) -> None:
        """Remove the directory of a job that has ended."""
        path = job_tmpdir(self.directory, job_id)
        try:
            info = os.lstat(path)
        except OSError:
            return
        # Whatever is made in a directory or removed from it gives it another time.
        if stat.S_ISDIR(info.st_mode) and info.st_mtime == _UNUSED:
            self._empty.append((path, stat.S_IMODE(info.st_mode)))
        else:
            import shutil  # which the server imports once it is ready

            shutil.rmtree(path, ignore_errors=True)
