"""Refuse jobspec files that would overwrite each other's output."""

from __future__ import annotations

import os

from parsl_flux_bulk.cli.bulksubmit.job_options import SPECIAL_FILES
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.base import JobRequest
from parsl_flux_bulk.jobspec import Jobspec


class NamedOutputs:
    """The files of output that the jobspecs name, without a template such as ``{{id}}``.

    Parameters
    ----------
    open_mode : str or None
        Of all jobs; None leaves that to the jobspecs.
    """

    def __init__(self, open_mode: str | None) -> None:
        self._open_mode = open_mode
        self._owners: dict[str, str] = {}

    def check(self, request: JobRequest, owner: str) -> JobRequest:
        """Return the request, with the open mode.

        Parameters
        ----------
        owner : str
            Name of the jobspec file.

        Raises
        ------
        JobspecError
            If another file names the same file of output.
        """
        jobspec = request.jobspec
        output = jobspec.shell_options.get("output", {})
        if self._open_mode is not None:
            output = {**output, "mode": self._open_mode}
            jobspec = jobspec.with_output(output)
        if output.get("mode") != "append":
            for stream in ("stdout", "stderr"):
                self._claim(output.get(stream, {}).get("path"), jobspec, owner)
        return JobRequest(jobspec, request.urgency)

    def _claim(self, name: object, jobspec: Jobspec, owner: str) -> None:
        if not isinstance(name, str) or name in SPECIAL_FILES or "{{" in name:
            return
        path = os.path.normpath(os.path.join(jobspec.system.get("cwd", ""), name))
        other = self._owners.setdefault(path, owner)
        if other != owner:
            raise JobspecError(
                f"its output would overwrite that of {other}: both go to {path!r}. Put {{{{id}}}} into the "
                "name, or give --open-mode append"
            )
