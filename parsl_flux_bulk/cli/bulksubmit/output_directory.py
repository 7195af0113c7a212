"""For ``--output-dir``: a file for the output of each job."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator

from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.item import Item
from parsl_flux_bulk.instances.base import JobRequest

RECORDS = "records.jsonl"
"""The file of records in the directory, unless --json names another one."""


class OutputDirectory:
    """The directory, whose files are ``NUMBER-LABEL.out``, as in ``3-sim_c.out``.

    Raises
    ------
    UnusableInput
        If the name has the form of a template.
    """

    def __init__(self, name: str) -> None:
        if "{" in name:
            raise UnusableInput(
                f"--output-dir {name!r} takes no template; --output does, such as --output='out/{{seq}}'"
            )
        self._name = name
        self._path = os.path.abspath(name)
        self.records = os.path.join(name, RECORDS)

    def make(self) -> None:
        """Make the directory."""
        try:
            os.makedirs(self._path, exist_ok=True)
        except OSError as error:
            raise UnusableInput(
                f"cannot make the directory {self._name!r} (--output-dir): {error.strerror}"
            ) from error

    def redirect(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the jobs, with their output sent to files."""
        for number, item in enumerate(items, start=1):
            path = os.path.join(self._path, f"{number}-{_file_name(item)}.out")
            yield dataclasses.replace(item, request=functools.partial(_request, item, path))


def _file_name(item: Item) -> str:
    name = re.sub(r"[^\w.,=+-]+", "_", re.sub(r" #\d+$", "", item.label)).strip("_")
    # A label that was cut off may be that of another job in a later run, whose numbers differ.
    return f"{name[:40]}-{item.key[:8]}" if len(name) > 40 or "…" in item.label else name


def _request(item: Item, path: str) -> JobRequest:
    """Return the job, with its output in the file unless the jobspec names another one."""
    request = item.request()
    output = request.jobspec.shell_options.get("output", {})
    stdout = output.get("stdout", {})
    if "path" in stdout:
        return request
    output = {**output, "stdout": {**stdout, "type": "file", "path": path}}
    return JobRequest(request.jobspec.with_output(output), request.urgency)
