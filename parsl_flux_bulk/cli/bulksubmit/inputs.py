"""Find the jobspec files that the command line names."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO, TypeAlias

STDIN = "-"

LONGEST_LINE = 1 << 16
"""Bytes of a line of stdin at most; Linux takes no path longer than 4096."""

_BOM = "\ufeff".encode()

Found: TypeAlias = tuple[Path, str]
"""A file as it was given, and its path without symbolic links."""


class UnusableInput(Exception):
    """The command line cannot be run; the message says why."""


def find_files(inputs: Iterable[str], stdin: Iterable[str]) -> tuple[list[Path], int]:
    """Return the jobspec files, in the order given, and how many were given more than once.

    Parameters
    ----------
    inputs : iterable of str
        Files; directories, of which the ``*.json`` are taken in the order of their names; patterns that the
        shell did not expand; ``-`` for paths (files or directories) from `stdin`.
    stdin : iterable of str
        Lines, each one path; empty lines are ignored. A file named here need not exist: it is
        reported when it is read, and the others still run.

    Raises
    ------
    UnusableInput
        If an input is a missing file or a directory without jobspecs, or stdin is empty.
    """
    found: dict[str, Path] = {}
    repeated = 0
    for name in inputs:
        for path, real in _from_stdin(stdin) if name == STDIN else _from_argument(name):
            if real in found:
                repeated += 1
            found.setdefault(real, path)
    return list(found.values()), repeated


def read_lines(stdin: TextIO | None) -> Iterator[str]:
    """Yield the lines of standard input; a name that is not UTF-8 is decoded as Python decodes file names.

    Raises
    ------
    UnusableInput
        If `stdin` is None, which means closed, or cannot be read.
    """
    if stdin is None:
        raise UnusableInput("'-' reads paths from stdin, but stdin is closed")
    try:
        line = stdin.buffer.readline(LONGEST_LINE).removeprefix(_BOM)
        while line:
            if len(line) == LONGEST_LINE:
                raise UnusableInput(f"a line of stdin is longer than any path: {os.fsdecode(line[:40])!r}...")
            yield os.fsdecode(line)
            line = stdin.buffer.readline(LONGEST_LINE)
    except OSError as error:
        raise UnusableInput(f"cannot read paths from stdin: {error.strerror}") from error


def _from_argument(name: str) -> list[Found]:
    if os.path.isdir(name):
        return _in_directory(Path(name))
    try:
        os.lstat(name)
    except FileNotFoundError:
        if any(character in name for character in "*?["):
            return _matching(name)
        words = name.split()
        command = bool(words) and shutil.which(words[0]) is not None
        hint = f"; a command stands after --: bulksubmit -- {name} ..." if command else ""
        raise UnusableInput(f"no such file or directory: {name!r}{hint}") from None
    except OSError as error:
        raise UnusableInput(f"cannot read {name!r}: {error.strerror}") from error
    return [_file(name)]


def _file(name: str) -> Found:
    return Path(name), os.path.realpath(name)


def _matching(pattern: str) -> list[Found]:
    """Return what the shell would pass: a pattern is quoted where it matches more than an exec() takes."""
    names = sorted(glob.iglob(pattern))
    if not names:
        raise UnusableInput(f"no file matches {pattern!r}")
    return [found for name in names for found in _from_argument(name)]


def _from_stdin(lines: Iterable[str]) -> list[Found]:
    paths: list[Found] = []
    for line in lines:
        name = line.removesuffix("\n")
        if name.endswith("\r") and not os.path.lexists(name):
            name = name[:-1]  # a list that was written on Windows
        if "\0" in name:
            raise UnusableInput("a null character on stdin: '-' reads one path from each line")
        if name:
            paths += _in_directory(Path(name)) if os.path.isdir(name) else [_file(name)]
    if not paths:
        raise UnusableInput("no paths on stdin: '-' reads one path from each line")
    return paths


def _in_directory(directory: Path) -> list[Found]:
    try:
        with os.scandir(directory) as entries:
            links = {
                entry.name: entry.is_symlink()
                for entry in entries
                if entry.name.endswith(".json") and entry.name != ".json"
            }
    except OSError as error:
        raise UnusableInput(f"cannot read the directory {str(directory)!r}: {error.strerror}") from error
    if not links:
        raise UnusableInput(f"no *.json files in the directory {str(directory)!r}")
    real = os.path.realpath(directory)
    return [
        (path, os.path.realpath(path) if links[name] else os.path.join(real, name))
        for name in sorted(links)
        for path in (directory / name,)
    ]
