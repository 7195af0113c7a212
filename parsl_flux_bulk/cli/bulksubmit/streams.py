"""Standard streams and the file of records: if writing fails, the run goes on without the stream."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, TextIO

from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput


class Output(io.TextIOBase):
    """A text stream that keeps the first error of writing, and then discards what is written.

    Parameters
    ----------
    stream : TextIO
    fatal : tuple of type
        Errors to raise instead.

    Attributes
    ----------
    error : OSError or None
        Why the stream was given up.
    """

    def __init__(self, stream: TextIO, fatal: tuple[type[OSError], ...] = ()) -> None:
        self._stream = stream
        self._fatal = fatal
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names need not fit the encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., object], *arguments: object) -> None:
        if self.error is not None:
            return
        try:
            call(*arguments)
        except OSError as error:
            discard(self._stream)
            if isinstance(error, self._fatal):
                raise
            self.error = error


def discard(stream: TextIO) -> None:
    """Send what a stream still has in its buffer nowhere; the interpreter flushes the stream at its exit."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def open_standard_streams() -> tuple[Output, Output]:
    """Return standard output and standard error; what is closed leads nowhere.

    A closed descriptor is replaced, too, because another file would be opened with its number. The end of the
    reader of standard output raises BrokenPipeError.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return Output(sys.stdout, fatal=(BrokenPipeError,)), Output(sys.stderr)


class Records:
    """The file of ``--json``: one JSON object on each line.

    Not buffered, so that a full disk is noticed with the record that did not fit, and SIGKILL loses no record
    that was written. Locked, because two commands would overwrite each other's records.

    Parameters
    ----------
    name : str
    append : bool
        Keep what is in the file, except for a last record that was cut off.

    Attributes
    ----------
    name : str
    error : OSError or None
        Why no more records are written.
    """

    def __init__(self, name: str, *, append: bool = False) -> None:
        self.name = name
        self.error: OSError | None = None
        self._written = 0
        try:
            mode = (os.O_RDWR if append else os.O_WRONLY) | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = open(os.open(name, mode, 0o666), "ab", buffering=0)  # noqa: SIM115
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._lock()
                self._written = _whole_lines(self._file.fileno()) if append else 0
                self._file.truncate(self._written)
        except (OSError, ValueError) as error:
            raise UnusableInput(f"cannot write {name!r} (--json): {reason(error)}") from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UnusableInput(f"another bulksubmit writes its records to {self.name!r}") from None
        except OSError:  # a file system without locks
            pass

    def write(self, record: dict[str, Any]) -> None:
        """Write one record, unless an earlier one could not be written."""
        # A name that is not UTF-8 has surrogates, which backslashreplace writes as JSON does: \\udcff.
        line = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        if self.error is None:
            try:
                self._write(line)
            except OSError as error:
                self.error = error
                with contextlib.suppress(OSError):
                    self._file.truncate(self._written)  # no half of a record

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[self._file.write(left) :]
        self._written += len(line)

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


def _whole_lines(descriptor: int) -> int:
    """Return the size of a file up to the end of its last line."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def reason(error: Exception) -> str:
    """Return what went wrong, without the name of the file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
