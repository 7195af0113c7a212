"""Sphinx directive ``command-line``: the options of a command, from its argument parser.

::

    .. command-line:: parsl_flux_bulk.cli.bulksubmit.option_parser option_parser
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList


class CommandLine(Directive):
    """Describe a command: usage, options by group, and its subcommands likewise."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Return the description."""
        module, function = self.arguments
        parser = getattr(importlib.import_module(module), function)()
        lines = StringList(list(describe(parser)), source=f"{module}.{function}")
        container = nodes.Element()
        self.state.nested_parse(lines, self.content_offset, container)
        return container.children


def describe(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the lines of the description, as reStructuredText."""
    yield from ("", f".. program:: {parser.prog}", "", "::", "")
    yield from (f"    {line}" for line in parser.format_usage().splitlines())
    subcommands: dict[str, argparse.ArgumentParser] = {}
    for group in parser._action_groups:
        actions = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                subcommands |= action.choices
            elif action.help != argparse.SUPPRESS:
                actions.append(action)
        if actions:
            yield from ("", f".. rubric:: {heading(group)}", "")
            for action in actions:
                yield from option(action)
    for sub in subcommands.values():
        yield from ("", f".. rubric:: {sub.prog}", "", literal(sub.description or ""), "")
        yield from describe(sub)


def heading(group: Any) -> str:
    """Return the title of a group of options, and what argparse says about the group."""
    title = {"positional arguments": "Arguments"}.get(group.title, str(group.title))
    return f"{title[0].upper()}{title[1:]}" + (
        f" ({literal(group.description)})" if group.description else ""
    )


def option(action: argparse.Action) -> Iterator[str]:
    """Yield the lines of one option or argument."""
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices:
        value = "|".join(map(str, action.choices))
    takes = "" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else value
    names = [f"{name} {takes}".strip() for name in action.option_strings] or [value]
    yield from (f".. option:: {', '.join(names)}", "", f"    {literal(help_of(action))}", "")


def help_of(action: argparse.Action) -> str:
    """Return the help of an option, with argparse's ``%`` formats filled in."""
    return (
        (action.help or "") % {**vars(action), "prog": ""}
        if "%" in (action.help or "")
        else action.help or ""
    )


def literal(text: str) -> str:
    """Return plain text as reStructuredText: options, and commands in backquotes, as literals."""
    parts = re.split(r"`([^`]*)`", " ".join(text.split()))
    parts[::2] = [_options_as_literals(part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts)


def _options_as_literals(text: str) -> str:
    escaped = re.sub(r"([\\*|_`])", r"\\\1", text)
    return re.sub(r"(?<!\w)--[a-z][\w-]*(?:=\w+)?", r"``\g<0>``\\ ", escaped)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
