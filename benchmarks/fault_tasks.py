"""Tasks of ``worker_kills.py`` and ``soak.py``. Workers import this module: standard library only.

Every run of a task appends ``start`` and ``end`` to a file of its process, so that a second run is seen.
"""

from __future__ import annotations

import os
import sys
import time
import zlib


class Planned(Exception):
    """An exception that a task raises."""


def record(directory: str, event: str, number: int, rank: int = 0) -> None:
    """Append an event of a task to the file of this process.

    Parameters
    ----------
    event : str
        ``start`` or ``end``.
    """
    path = f"{directory}/{os.uname().nodename}-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{event} {number} {rank}\n".encode())
    os.close(descriptor)


def value_of(number: int) -> int:
    """Return the right result of a task."""
    return number * 2654435761 % 2**32


def work(directory: str, number: int, seconds: float = 0.0, **_: object) -> int:
    """Take some time."""
    record(directory, "start", number)
    if seconds:
        time.sleep(seconds)
    record(directory, "end", number)
    return value_of(number)


def work_on_ranks(directory: str, number: int, **_: object) -> int:
    """Take some time on each rank of a job."""
    rank = int(os.environ["FLUX_TASK_RANK"])
    record(directory, "start", number, rank)
    time.sleep(0.1)
    record(directory, "end", number, rank)
    return value_of(number)


def big(directory: str, number: int, data: bytes) -> tuple[int, bytes]:
    """Return the checksum of the argument, and the argument reversed."""
    record(directory, "start", number)
    result = zlib.crc32(data), data[::-1]
    record(directory, "end", number)
    return result


def fail(directory: str, number: int) -> None:
    """Raise an exception."""
    record(directory, "start", number)
    record(directory, "end", number)
    raise Planned(number)


def leave(directory: str, number: int, status: int) -> None:
    """End the process that runs the task."""
    record(directory, "start", number)
    os._exit(status)


def exit_python(directory: str, number: int, status: int) -> None:
    """Call sys.exit."""
    record(directory, "start", number)
    record(directory, "end", number)
    sys.exit(status)


def fill_disk(directory: str, number: int) -> None:
    """Write to a full disk."""
    record(directory, "start", number)
    try:
        with open("/dev/full", "w") as file:
            file.write("text")
    finally:
        record(directory, "end", number)


def command(
    directory: str, number: int, seconds: float = 0.0, status: int = 0, stdout: str | None = None, **_: object
) -> str:
    """Return a bash command that takes some time, prints a line and exits with `status`."""
    note = f'echo "$event {number} 0" >> {directory}/bash-$$'
    say = f"event=start; {note}; sleep {seconds}; echo text; printed=$?"
    return f"{say}; event=end; {note}; [ $printed = 0 ] || exit 9; exit {status}"
