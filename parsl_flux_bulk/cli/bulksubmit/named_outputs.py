"""Refuse jobspec files that would overwrite each other's output."""

from __future__ import annotations

import os
from typing import Any

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
        if self._open_mode is not None:
            jobspec = _with_mode(jobspec, self._open_mode)
        output = _options(jobspec).get("output", {})
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


def _options(jobspec: Jobspec) -> dict[str, Any]:
    options: dict[str, Any] = jobspec.system.get("shell", {}).get("options", {})
    return options


def _with_mode(jobspec: Jobspec, mode: str) -> Jobspec:
    shell, options = jobspec.system.get("shell", {}), _options(jobspec)
    output = {**options.get("output", {}), "mode": mode}
    return jobspec.with_system(shell={**shell, "options": {**options, "output": output}})
