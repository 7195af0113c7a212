"""Input lists: ``::: a b``, ``:::: FILE``, ``:::+ c d`` and lines from stdin; their combinations."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

STDIN = "-"

LONGEST_LINE = 1 << 20
"""Bytes of a line at most; Linux takes no argument longer than 128 KiB."""

_DELIMITERS = {":::": (False, False), "::::": (True, False), ":::+": (False, True), "::::+": (True, True)}
"""Whether a delimiter names a file, and whether it links its list to the lists before."""

_BOM = "\ufeff".encode()
_CHUNK = 1 << 16

Wait: TypeAlias = Callable[[int], None]
"""Waits until a file descriptor is readable."""


class InputError(Exception):
    """The inputs cannot be used; the message says why."""


@dataclass(frozen=True)
class InputList:
    """One list of inputs.

    Attributes
    ----------
    values : tuple of str
    file : str or None
        Where to read the values from instead; ``-`` is stdin.
    linked : bool
        Whether each combination takes the next value, instead of being combined with every value.
    """

    values: tuple[str, ...] = ()
    file: str | None = None
    linked: bool = False


def has_delimiter(words: Iterable[str]) -> bool:
    """Return whether a word begins an input list."""
    return any(word in _DELIMITERS for word in words)


def split_inputs(words: list[str]) -> tuple[list[str], list[InputList]]:
    """Split ``command ::: inputs ::: inputs`` at its delimiters.

    Raises
    ------
    InputError
        If a list is empty, a file is missing, or there is nothing to link a list to.
    """
    command: list[str] = []
    lists: list[InputList] = []
    current = command
    delimiter = ""
    for word in words:
        if word in _DELIMITERS:
            if delimiter:
                lists.append(_input_list(delimiter, current))
            delimiter, current = word, []
        else:
            current.append(word)
    if delimiter:
        lists.append(_input_list(delimiter, current))
    if lists and lists[0].linked:
        raise InputError("the first input list is linked by '+', and there is no list before it; write :::")
    if sum(entry.file == STDIN for entry in lists) > 1:
        raise InputError("two input lists are read from stdin")
    return command, lists


def _input_list(delimiter: str, values: list[str]) -> InputList:
    from_file, linked = _DELIMITERS[delimiter]
    if not from_file:
        if not values:
            raise InputError(f"no inputs after {delimiter}")
        return InputList(tuple(values), None, linked)
    if len(values) != 1:
        raise InputError(f"{delimiter} takes one file ('-' is stdin), not {len(values)}")
    return InputList((), values[0], linked)


class Combinations:
    """The inputs of each job, in order; a single list from a file is not kept in memory.

    Parameters
    ----------
    lists : list of InputList
        Not empty.
    separator : str or None
        Between the values of a file; None is white space.

    Attributes
    ----------
    lists : int
        Number of lists.
    wait : callable
        Called with a file descriptor before it is read.
    """

    def __init__(self, lists: list[InputList], separator: str | None = "\n") -> None:
        self.lists = len(lists)
        self._separator = separator
        self.wait: Wait = lambda descriptor: None
        self._stream: str | None = None
        self._values: list[tuple[str, ...]] = []
        self._linked = [entry.linked for entry in lists]
        if len(lists) == 1 and lists[0].file is not None:
            self._stream = lists[0].file
            check_readable(self._stream)
        else:
            self._values = [entry.values or self._read_all(entry.file or STDIN) for entry in lists]

    def count(self) -> int | None:
        """Return the number of combinations; None as long as they come from a file."""
        if self._stream is not None:
            return None
        total = 1
        for values, linked in zip(self._values, self._linked, strict=True):
            total *= 1 if linked else len(values)
        return total

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        if self._stream is not None:
            values = read_values(self._stream, self._separator, lambda descriptor: self.wait(descriptor))
            return ((value,) for value in not_empty(values, self._stream))
        return self._combined()

    def _combined(self) -> Iterator[tuple[str, ...]]:
        pairs = list(zip(self._values, self._linked, strict=True))
        combined = itertools.product(*(values for values, linked in pairs if not linked))
        cycles = [itertools.cycle(values) if linked else None for values, linked in pairs]
        for combination in combined:
            own = iter(combination)
            yield tuple(next(own) if cycle is None else next(cycle) for cycle in cycles)

    def _read_all(self, name: str) -> tuple[str, ...]:
        return tuple(not_empty(read_values(name, self._separator), name))


def check_readable(name: str, option: str = "") -> None:
    """Raise InputError, with the option that names the file, if a file of lines cannot be read."""
    if name == STDIN:
        return
    what = f"{name!r} ({option})" if option else repr(name)
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if os.path.isdir(name):
            raise InputError(f"{what} is a directory; it must be a file of lines")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {what}: {getattr(error, 'strerror', None) or error}") from error


def not_empty(values: Iterator[str], name: str) -> Iterator[str]:
    """Yield the values of a file, and raise InputError if there are none."""
    value = None
    for value in values:
        yield value
    if value is None:
        raise InputError(f"no inputs {_from(name)}")


def read_values(name: str, separator: str | None = "\n", wait: Wait | None = None) -> Iterator[str]:
    """Yield the values of a file, without the empty ones.

    Parameters
    ----------
    name : str
        ``-`` is stdin.
    separator : str or None
        None is white space.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    lines = read_lines(name, wait)
    if separator == "\n":
        return (line for line in lines if line)
    if separator is None:
        return (word for line in lines for word in line.split())
    return (value for value in "\n".join(lines).split(separator) if value)


def read_lines(name: str, wait: Wait | None = None) -> Iterator[str]:
    """Yield the lines of a file without their ends; a text that is not UTF-8 is decoded as file names are.

    Raises
    ------
    InputError
        If the file cannot be read, or a line is longer than LONGEST_LINE.
    """
    try:
        with contextlib.ExitStack() as stack:
            descriptor = 0
            if name != STDIN:
                descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
            for line in _split(_chunks(descriptor, wait), name):
                yield os.fsdecode(line.removesuffix(b"\r"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {_name(name)}: {getattr(error, 'strerror', None) or error}") from error


def _chunks(descriptor: int, wait: Wait | None) -> Iterator[bytes]:
    while True:
        if wait is not None:
            wait(descriptor)
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            return
        yield chunk


def _split(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    rest = b""
    first = True
    for chunk in chunks:
        if first:
            chunk, first = chunk.removeprefix(_BOM), False
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > LONGEST_LINE:
            raise InputError(
                f"a line {_from(name)} is longer than {LONGEST_LINE >> 20} MiB: {rest[:40]!r}..."
            )
    if rest:
        yield rest


def _name(name: str) -> str:
    return "stdin" if name == STDIN else repr(name)


def _from(name: str) -> str:
    return f"from {_name(name)}"
