"""Output that an instance kept of a job, in parts of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

from parsl_flux_bulk.errors import OutputUnavailable
from parsl_flux_bulk.instances.base import START, Connection, JobId, Output, Position

PART_SIZE = 1 << 20
"""Bytes of a file in one part, at most."""


def read_files(paths: Sequence[str], start: Position) -> Output | None:
    """Return the next part of the files of standard output and error; None if neither exists.

    Parameters
    ----------
    start : Position
        Bytes of each that have been read.

    Raises
    ------
    OutputUnavailable
        A file cannot be read.
    """
    parts: list[bytes | None] = []
    for path, offset in zip(paths, start, strict=True):
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                parts.append(file.read(PART_SIZE))
        except FileNotFoundError:
            parts.append(None)
        except OSError as error:
            raise OutputUnavailable(f"cannot read {path}: {error.strerror}") from error
    if parts == [None, None]:
        return None
    out, err = (part or b"" for part in parts)
    end = start[0] + len(out), start[1] + len(err)
    return Output(out.decode(errors="surrogateescape"), err.decode(errors="surrogateescape"), end)


def readable(text: str) -> str:
    """Return output with replacement characters for what is not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def read_all(connection: Connection, job_id: JobId) -> tuple[str, str]:
    """Return all that the instance kept; see :meth:`.base.Connection.output`."""
    parts = [connection.output(job_id, START)]
    while parts[-1]:
        parts.append(connection.output(job_id, parts[-1].end))
    return readable("".join(part.stdout for part in parts)), readable("".join(part.stderr for part in parts))
