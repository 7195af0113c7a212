"""The scratch directories of the embedded instance's jobs (``FLUX_JOB_TMPDIR``)."""

from __future__ import annotations

import os
import shutil

from parsl_flux_bulk.instances.local.processes import job_tmpdir


class ScratchDirectories:
    """Makes and removes them; those that stayed empty serve again, which costs less.

    Attributes
    ----------
    directory : str
        The instance's private one, in which they are.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._empty: list[str] = []

    def make(self, job_id: int) -> str:
        """Make the directory of a job; return its path."""
        path = job_tmpdir(self.directory, job_id)
        if self._empty:
            os.rename(self._empty.pop(), path)
            os.chmod(path, 0o700)  # the last job may have changed it
        else:
            os.mkdir(path, 0o700)
        return path

    def remove(self, job_id: int) -> None:
        """Remove the directory of a job that has ended."""
        path = job_tmpdir(self.directory, job_id)
        try:
            empty = not os.listdir(path)
        except OSError:
            empty = False
        if empty:
            self._empty.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
