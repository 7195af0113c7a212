"""Find the jobspec files that the command line names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

STDIN = "-"


class UnusableInput(Exception):
    """The command line cannot be run; the message says why."""


def find_files(inputs: Iterable[str], stdin: Iterable[str]) -> tuple[list[Path], int]:
    """Return the jobspec files, in the order given, and how many were given more than once.

    Parameters
    ----------
    inputs : iterable of str
        Files; directories, of which the ``*.json`` are taken in the order of their names; ``-`` for
        paths (files or directories) from `stdin`.
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
        for path in _from_stdin(stdin) if name == STDIN else _from_argument(name):
            key = os.path.realpath(path)
            if key in found:
                repeated += 1
            found.setdefault(key, path)
    return list(found.values()), repeated


def _from_argument(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return _in_directory(path)
    if not os.path.lexists(path):
        if any(character in name for character in "*?["):
            raise UnusableInput(f"no file matches {name!r}")
        raise UnusableInput(f"no such file or directory: {name!r}")
    return [path]


def _from_stdin(lines: Iterable[str]) -> list[Path]:
    paths: list[Path] = []
    for line in lines:
        name = line.rstrip("\n")
        if name:
            path = Path(name)
            paths += _in_directory(path) if path.is_dir() else [path]
    if not paths:
        raise UnusableInput("no paths on stdin: '-' reads one path from each line")
    return paths


def _in_directory(directory: Path) -> list[Path]:
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise UnusableInput(f"cannot read the directory {str(directory)!r}: {error.strerror}") from error
    if not paths:
        raise UnusableInput(f"no *.json files in the directory {str(directory)!r}")
    return paths
