"""The jobs to submit: of jobspec files, of a command with inputs and copies, of a stream."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from parsl_flux_bulk.blocks.packed.packing import Packing
from parsl_flux_bulk.bulk.inputs import Wait
from parsl_flux_bulk.bulk.jobspec_files import read_jobspec
from parsl_flux_bulk.cli.bulksubmit.command_work import CommandWork
from parsl_flux_bulk.cli.bulksubmit.earlier_run import EarlierRun
from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput, find_files, read_lines
from parsl_flux_bulk.cli.bulksubmit.item import Item
from parsl_flux_bulk.cli.bulksubmit.job_lines import CommandLines, JobLines
from parsl_flux_bulk.cli.bulksubmit.job_options import urgency_number
from parsl_flux_bulk.cli.bulksubmit.named_outputs import NamedOutputs
from parsl_flux_bulk.cli.bulksubmit.output_directory import OutputDirectory
from parsl_flux_bulk.cli.bulksubmit.report import printable
from parsl_flux_bulk.cli.bulksubmit.streams import reason
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.base import JobRequest
from parsl_flux_bulk.jobspec.jobspec import Demand, Jobspec

READ_AHEAD = 1500
"""Jobspec files read, at most, while the instance starts: what takes about as long."""


class _Source(Protocol):
    def items(self, wait: Wait) -> Iterator[Item]:
        """Yield the jobs; `wait` is called before a file descriptor is read."""


class Work:
    """The jobs to submit, in order.

    Attributes
    ----------
    files : list of Path
        The jobspec files; empty for commands.
    repeated : int
        How many files were given more than once.
    total : int or None
        Number of jobs; None as long as they come from a stream.
    output_directory : OutputDirectory or None
        Where the output of the jobs goes.
    earlier : EarlierRun or None
        Set to leave out the jobs that need not run again.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._shuffle = options.shuffle
        self.earlier: EarlierRun | None = None
        self.output_directory = OutputDirectory(options.output_dir) if options.output_dir else None
        self.files: list[Path] = []
        self.repeated = 0
        self.total: int | None = None
        self._demand: Demand | None = None
        self._listed: _Files | None = None
        if options.command:
            work = CommandWork(options)
            self._source: _Source = work
            self.total, self._demand = work.count(), work.demand
        elif options.inputs:
            self.files, self.repeated = find_files(options.inputs, read_lines(sys.stdin))
            outputs = NamedOutputs(options.open_mode)
            self._source = self._listed = _Files(self.files, urgency_number(options.urgency), outputs)
            self.total = len(self.files)
        elif options.commands is not None:
            self._source = lines = CommandLines(options)
            self._demand = lines.demand
        else:
            self._source = JobLines(options)

    def packing(self, *, keeps_output: bool) -> Packing:
        """Return what is known of the jobs before they are read."""
        cores, gpus = (None, None) if self._demand is None else (self._demand.cores, self._demand.gpus)
        return Packing(cores, gpus, self.total, keeps_output)

    def read_ahead(self) -> None:
        """Read the first jobspec files now: the instance starts meanwhile."""
        if self._listed is not None:
            self._listed.read_ahead()

    def items(self, wait: Wait) -> Iterator[Item]:
        """Yield the jobs; `wait` is called before a file descriptor is read."""
        items = self._source.items(wait)
        if self.output_directory is not None:
            items = self.output_directory.redirect(items)
        earlier = self.earlier
        if earlier is not None:
            items = (item for item in items if not earlier.skips(item))
        if self._shuffle:
            items = iter(random.sample(listed := list(items), len(listed)))
        return items


class _Files:
    def __init__(self, files: list[Path], urgency: int, outputs: NamedOutputs) -> None:
        self._files = files
        self._urgency = urgency
        self._outputs = outputs
        self._ahead: dict[Path, Jobspec] = {}

    def read_ahead(self) -> None:
        for path in self._files[:READ_AHEAD]:
            with contextlib.suppress(JobspecError, OSError):  # raised again where the job is submitted
                self._ahead[path] = read_jobspec(path)

    def items(self, wait: Wait) -> Iterator[Item]:
        return map(self._item, self._files)

    def _item(self, path: Path) -> Item:
        name = str(path)
        return Item(name, name, name, lambda: self._request(path, name))

    def _request(self, path: Path, name: str) -> JobRequest:
        jobspec = self._ahead.pop(path, None) or read_jobspec(path)
        return self._outputs.check(JobRequest(jobspec, self._urgency), name)


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
