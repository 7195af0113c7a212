"""The jobs to submit: jobspec files, or copies of a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parsl_flux_bulk.bulk.jobspec_files import read_jobspec
from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture
from parsl_flux_bulk.cli.arguments import RESOURCE_KEYS
from parsl_flux_bulk.cli.inputs import UnusableInput, find_files, read_lines
from parsl_flux_bulk.cli.report import printable
from parsl_flux_bulk.cli.streams import reason
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec.resources import Resources

COPY_VARIABLE = "FLUX_JOB_CC"
"""Environment variable that numbers the copies of a command from 0, as ``flux submit --cc`` does."""


@dataclass(frozen=True)
class Item:
    """One job to submit: its name in messages, and the call that submits it."""

    label: str
    submit: Callable[[BulkSubmitter], JobFuture]


class Work:
    """The jobs to submit, in order: their number, and an iterator."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.files: list[Path] = []
        self.repeated = 0
        if not options.command:
            self.files, self.repeated = find_files(options.inputs, read_lines(sys.stdin))
        self._resources = _resources(options)

    def __len__(self) -> int:
        return len(self.files) if self.files else self._options.copies or 1

    def __iter__(self) -> Iterator[Item]:
        if self.files:
            return (self._of_file(path) for path in self.files)
        return (self._of_copy(number) for number in range(1, len(self) + 1))

    def _of_file(self, path: Path) -> Item:
        return Item(str(path), lambda bulk: bulk.submit(path, urgency=self._options.urgency))

    def _of_copy(self, number: int) -> Item:
        options = self._options
        command = " ".join(options.command)
        label = f"{command if len(command) <= 40 else command[:39] + '…'} #{number}"
        return Item(
            label,
            lambda bulk: bulk.submit_command(
                options.command,
                stdout=options.output,
                stderr=options.error,
                label=label,
                **self._resources_of(number),
            ),
        )

    def _resources_of(self, number: int) -> dict[str, Any]:
        """Return the resources of one copy; with --copies, its environment has the number of the copy."""
        if self._options.copies is None:
            return self._resources
        environment = [*self._resources.get("environment", ()), f"{COPY_VARIABLE}={number - 1}"]
        return {**self._resources, "environment": environment}


def _resources(options: argparse.Namespace) -> dict[str, Any]:
    given = {
        key: getattr(options, option) for option, key in RESOURCE_KEYS.items() if getattr(options, option)
    }
    resources = {**given, "urgency": options.urgency}
    try:
        Resources.from_specification(resources)
    except Exception as error:  # Parsl's InvalidResourceSpecification; importing it would take 0.3 s
        raise UnusableInput(str(error)) from error
    return resources


def refuse_invalid(files: Iterable[Path]) -> None:
    """For --strict: raise UnusableInput, with every file that is not a valid jobspec."""
    wrong = []
    for path in files:
        try:
            read_jobspec(path)
        except (JobspecError, OSError) as error:
            wrong.append(f"  {printable(str(path))}: {reason(error)}")
    if wrong:
        raise UnusableInput("\n".join([f"nothing was started: {len(wrong)} file(s) are unusable", *wrong]))
