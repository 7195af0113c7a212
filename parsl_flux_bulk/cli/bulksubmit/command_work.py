"""The jobs of a command: one for each combination of inputs and each copy."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator

from parsl_flux_bulk.bulk.copies import parse_idset
from parsl_flux_bulk.bulk.inputs import Combinations, InputError, InputList, Wait
from parsl_flux_bulk.bulk.templates import LITERALLY, Method, Template, TemplateError, Values, define
from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.item import Item, digest, numbered, unusable
from parsl_flux_bulk.cli.bulksubmit.job_options import JobOptions, refuse_one_file
from parsl_flux_bulk.jobspec.jobspec import Demand


class CommandWork:
    """The jobs of a command.

    Raises
    ------
    UnusableInput
        If the command, its options or its inputs cannot be used.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        _refuse_shell_text(options.command)
        try:
            methods = define(options.define)
            self._job_options = JobOptions(options, methods)
            self._copies = _Copies(options, methods)
            self._literal: list[str] = options.command if options.literal else []
            words = [] if options.literal else options.command
            self._command = [Template(word, "the command", methods) for word in words]
            templates = [*self._command, *self._job_options.all_templates, *self._copies.templates]
            self._combinations = _open_inputs(options, templates)
            _check_templates(templates, self._combinations, self._copies)
        except (TemplateError, InputError) as error:
            raise UnusableInput(str(error)) from error
        if self.count() != 1:
            refuse_one_file(options)

    def count(self) -> int | None:
        """Return the number of jobs; None if it is not known before the inputs are read."""
        combinations = 1 if self._combinations is None else self._combinations.count()
        copies = self._copies.count()
        return None if combinations is None or copies is None else combinations * copies

    @property
    def demand(self) -> Demand | None:
        """What each job needs; None if the jobs differ in it."""
        return self._job_options.demand

    def items(self, wait: Wait) -> Iterator[Item]:
        """Yield the jobs; `wait` is called before inputs are read from a file descriptor."""
        combinations: Iterable[tuple[str, ...]] = [()]
        if self._combinations is not None:
            self._combinations.wait = wait
            combinations = self._combinations
        number = 0
        for seq, inputs in enumerate(combinations):
            values = Values(inputs, seq)
            try:
                copies = self._copies.numbers(values)
            except (TemplateError, ValueError) as error:
                copies, number = (), number + 1
                yield unusable(shlex.join(inputs), number, error)
            for cc in copies:
                number += 1
                yield self._item(values._replace(cc=cc), number)

    def _item(self, values: Values, number: int) -> Item:
        try:
            filled = self._job_options.fill(values)
            command = self._literal or [word for part in self._command for word in part.words(values)]
        except TemplateError as error:
            return unusable(shlex.join(values.inputs), number, error)
        own = values.cc if self._copies.in_environment else None
        return Item(
            numbered(" ".join(command), number),
            digest(json.dumps([command, filled.changed, values.cc])),
            shlex.join([*filled.changed, *command]),
            lambda: self._job_options.request(command, filled, own),
        )


class _Copies:
    """The numbers of the copies: --copies, --cc, --bcc."""

    def __init__(self, options: argparse.Namespace, methods: dict[str, Method]) -> None:
        self._ranges: list[range] | None = None if options.copies is None else [range(options.copies)]
        text = options.cc if options.cc is not None else options.bcc
        self.templates = [Template(text, "--cc", methods)] if text is not None else []
        self.given = self._ranges is not None or bool(self.templates)
        self.in_environment = options.bcc is None
        if self.templates and not self.templates[0].names:
            try:
                self._ranges = parse_idset(text)
            except ValueError as error:
                raise UnusableInput(f"--cc: {error}") from error

    def count(self) -> int | None:
        if self._ranges is None:
            return None if self.given else 1
        return sum(map(len, self._ranges))

    def numbers(self, values: Values) -> Iterable[int | None]:
        """Return the numbers for one combination of inputs."""
        if not self.given:
            return (None,)
        ranges = self._ranges
        if ranges is None:
            ranges = parse_idset(self.templates[0].fill(values))
        return (number for part in ranges for number in part)


def _refuse_shell_text(command: list[str]) -> None:
    """Refuse a whole command in quotes, as GNU parallel takes it."""
    text = command[0]
    words = text.split()
    if len(command) == 1 and len(words) > 1 and not shutil.which(text) and shutil.which(words[0]):
        raise UnusableInput(
            f"{text!r} is not a program, and no shell splits it into words: leave its quotes away, or give "
            f"sh -c {shlex.quote(text)}"
        )


def _open_inputs(options: argparse.Namespace, templates: list[Template]) -> Combinations | None:
    lists: list[InputList] = options.lists
    using = next((template for template in templates if "" in template.names), None)
    if not lists and using is not None:
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError(
                f"{using.text!r} in {using.where} needs inputs: give ::: INPUT ..., :::: FILE, or lines on "
                f"stdin; {LITERALLY}"
            )
        lists = [InputList(file="-")]
    return Combinations(lists, _separator(options.sep)) if lists else None


def _separator(text: str) -> str | None:
    if text.lower() == "none":
        return None
    separator = text.encode().decode("unicode_escape")
    if not separator:
        raise UnusableInput("--sep must not be empty; 'none' is white space")
    return separator


def _check_templates(templates: list[Template], combinations: Combinations | None, copies: _Copies) -> None:
    lists = 0 if combinations is None else combinations.lists
    for template in templates:
        template.check(lists, copies=copies.given and template not in copies.templates)
    if lists and not any(template.names & {"", "seq", "seq1"} for template in templates):
        raise InputError("the inputs are used nowhere: put {} where an input belongs in the command")
