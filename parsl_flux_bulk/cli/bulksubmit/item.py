"""One job to submit: its names, and the call that makes its request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.base import JobRequest

LABEL_WIDTH = 40
"""Characters of a command in the name of its job."""


@dataclass(frozen=True, slots=True)
class Item:
    """One job to submit.

    Attributes
    ----------
    label : str
        Name of the job in messages.
    key : str
        The same for the same job in another run: its file, or a digest of its command and inputs.
    shown : str
        The command, after the options that were filled in, as --dry-run prints it.
    request : callable
        Returns the job; raises JobspecError, or OSError for a file that cannot be read.
    retries : int
        How often the job has failed and run again.
    """

    label: str
    key: str
    shown: str
    request: Callable[[], JobRequest]
    retries: int = 0


def numbered(text: str, number: int) -> str:
    """Return the label of a job: the beginning of its command, and its number."""
    return f"{text if len(text) <= LABEL_WIDTH else text[: LABEL_WIDTH - 1] + '…'} #{number}"


def digest(text: str) -> str:
    """Return a key for a text."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def unusable(text: str, number: int, error: Exception) -> Item:
    """Return an item whose request raises JobspecError, so that it fails alone."""

    def request() -> NoReturn:
        raise JobspecError(str(error)) from error

    return Item(numbered(text, number), digest(text), text, request)
