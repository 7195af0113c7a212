"""From what was typed to a list of jobspec files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

STDIN = "-"


class UnusableInput(Exception):
    """Nothing can be run from what was typed; the message says why."""


def find_files(inputs: Iterable[str], stdin: Iterable[str]) -> tuple[list[Path], int]:
    """Return the jobspec files, in the order given, and how many were given more than once.

    Parameters
    ----------
    inputs : iterable of str
        Files; directories, whose ``*.json`` are taken in the order of their names; ``-`` for paths
        (files or directories) from `stdin`.
    stdin : iterable of str
        Lines, each one path; empty ones are passed over. A file named here need not exist: who
        reads it will find out, and the others still run.

    Raises
    ------
    UnusableInput
        If something typed names nothing: a missing file, a directory without jobspecs, an empty stdin.
    """
    found: dict[str, Path] = {}
    repeated = 0
    for typed in inputs:
        for path in _from_stdin(stdin) if typed == STDIN else _typed(typed):
            key = os.path.realpath(path)
            if key in found:
                repeated += 1
            found.setdefault(key, path)
    return list(found.values()), repeated


def _typed(typed: str) -> list[Path]:
    path = Path(typed)
    if path.is_dir():
        return _in_directory(path)
    if not os.path.lexists(path):
        if any(character in typed for character in "*?["):
            raise UnusableInput(f"no file matches {typed!r}")
        raise UnusableInput(f"no such file or directory: {typed!r}")
    return [path]


def _from_stdin(lines: Iterable[str]) -> list[Path]:
    paths: list[Path] = []
    for line in lines:
        name = line.rstrip("\n")
        if name:
            path = Path(name)
            paths += _in_directory(path) if path.is_dir() else [path]
    if not paths:
        raise UnusableInput("no paths on stdin: '-' reads one path from each line of it")
    return paths


def _in_directory(directory: Path) -> list[Path]:
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise UnusableInput(f"cannot read the directory {str(directory)!r}: {error.strerror}") from error
    if not paths:
        raise UnusableInput(f"no *.json files in the directory {str(directory)!r}")
    return paths
