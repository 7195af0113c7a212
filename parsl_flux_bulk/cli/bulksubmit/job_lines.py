"""Jobs from a stream: a command on each line, or a JSON object on each line."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from parsl_flux_bulk.bulk.inputs import Wait, check_readable, not_empty, read_lines
from parsl_flux_bulk.bulk.templates import TemplateError, Values, define
from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.item import Item, digest, numbered, unusable
from parsl_flux_bulk.cli.bulksubmit.job_options import JobOptions, refuse_one_file, urgency_number
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.base import JobRequest
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.jobspec import Demand
from parsl_flux_bulk.jobspec.resources import Resources

SHELL = "/bin/sh"

_OF_COMMAND = ("command", "stdin", "stdout", "stderr", "label")


class CommandLines:
    """The jobs of ``--commands``: each line runs in a shell; in options, ``{}`` is the line."""

    def __init__(self, options: argparse.Namespace) -> None:
        check_readable(options.commands, "--commands")
        refuse_one_file(options)
        self._name = options.commands
        try:
            self._job_options = JobOptions(options, define(options.define))
            for template in self._job_options.all_templates:
                template.check(1, copies=False)
        except TemplateError as error:
            raise UnusableInput(str(error)) from error

    @property
    def demand(self) -> Demand | None:
        """What each job needs; None if the jobs differ in it."""
        return self._job_options.demand

    def items(self, wait: Wait) -> Iterator[Item]:
        """Yield a job for each line that is neither empty nor a comment."""
        lines = (line for line in read_lines(self._name, wait) if line.strip() and line.lstrip()[0] != "#")
        return (self._item(line, seq) for seq, line in enumerate(not_empty(lines, self._name)))

    def _item(self, line: str, seq: int) -> Item:
        try:
            filled = self._job_options.fill(Values((line,), seq))
        except TemplateError as error:
            return unusable(line, seq + 1, error)
        shown = " ".join([*filled.changed, line])
        key = digest(json.dumps([line, filled.changed]))
        return Item(
            numbered(line, seq + 1),
            key,
            shown,
            lambda: self._job_options.request([SHELL, "-c", line], filled),
        )


class JobLines:
    """The jobs of ``--jobs``: each line is a jobspec, or an object with a command and its resources."""

    def __init__(self, options: argparse.Namespace) -> None:
        check_readable(options.jobs, "--jobs")
        self._name = options.jobs
        self._urgency = urgency_number(options.urgency)
        self._environment = dict(os.environ)
        self._cwd = os.getcwd()

    def items(self, wait: Wait) -> Iterator[Item]:
        """Yield a job for each line that is not empty."""
        lines = (line for line in read_lines(self._name, wait) if line.strip())
        return (self._item(line, number) for number, line in enumerate(not_empty(lines, self._name), start=1))

    def _item(self, line: str, number: int) -> Item:
        try:
            job = json.loads(line)
        except ValueError as error:
            return unusable(line, number, JobspecError(f"not JSON: {error}"))
        if not isinstance(job, dict):
            return unusable(line, number, JobspecError("must be a JSON object"))
        if "tasks" in job:
            return Item(
                f"line {number}",
                digest(line),
                line,
                lambda: JobRequest(Jobspec.parse(line), self._urgency),
            )
        command = job.get("command")
        words = [SHELL, "-c", command] if isinstance(command, str) else command
        text = command if isinstance(command, str) else " ".join(map(str, command or ()))
        label = str(job.get("label") or numbered(text, number))
        return Item(label, digest(line), line, lambda: self._request(words, job))

    def _request(self, words: Any, job: dict[str, Any]) -> JobRequest:
        if words is None:
            raise JobspecError("must have the key 'command', or be a jobspec")
        try:
            keys = {key: value for key, value in job.items() if key not in _OF_COMMAND}
            resources = Resources.from_specification({"urgency": self._urgency, **keys})
        except Exception as error:  # Parsl's InvalidResourceSpecification; importing it would take 0.3 s
            raise JobspecError(str(error)) from error
        for name in ("stdin", "stdout", "stderr"):
            path = job.get(name)
            if path is not None and not (isinstance(path, str) and path):
                raise JobspecError(f"{name!r} must be the name of a file, not {path!r}")
        jobspec = build(
            resources,
            words,
            environment=self._environment,
            cwd=self._cwd,
            stdin=job.get("stdin"),
            stdout=job.get("stdout"),
            stderr=job.get("stderr"),
        )
        return JobRequest(jobspec, resources.urgency)
