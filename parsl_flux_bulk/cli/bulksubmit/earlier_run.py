"""What an earlier run recorded: which jobs --resume and --rerun skip."""

from __future__ import annotations

import json
from collections import Counter

from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.item import Item

FAILED = ("failed", "timeout", "canceled", "invalid")


class EarlierRun:
    """The records of earlier runs with the same file of records.

    Two jobs may have the same key, such as two equal lines of --commands, so completed ones are counted.

    Parameters
    ----------
    name : str
        The file of records.
    only_failed : bool
        For --rerun: skip the jobs that were not recorded, too.

    Attributes
    ----------
    skipped : int

    Raises
    ------
    UnusableInput
        If the file cannot be read, or has a line that is not a record.
    """

    def __init__(self, name: str, *, only_failed: bool) -> None:
        self._name = name
        self._only_failed = only_failed
        self._completed: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._found = False
        self.skipped = 0
        try:
            with open(name, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.endswith(b"\n"):  # the last record may have been cut off
                        self._read(line, number)
        except FileNotFoundError as error:
            if only_failed:
                raise UnusableInput(f"cannot read {name!r} (--rerun): {error.strerror}") from error
        except OSError as error:
            raise UnusableInput(f"cannot read {name!r}: {error.strerror}") from error

    def _read(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
            key, status = str(record["key"]), record["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise UnusableInput(
                f"{self._name!r}: line {number} is not a record that `bulksubmit --json` wrote"
            ) from error
        if status == "completed":
            self._completed[key] += 1
        elif status in FAILED:
            self._failed.add(key)

    def skips(self, item: Item) -> bool:
        """Return whether a job is left out; counts it."""
        completed = self._completed[item.key] > 0 if item.key in self._completed else False
        self._found = self._found or completed or item.key in self._failed
        if completed:
            self._completed[item.key] -= 1
        elif not self._only_failed or item.key in self._failed:
            return False
        self.skipped += 1
        return True

    @property
    def foreign(self) -> bool:
        """Whether there are records, and all are of other jobs."""
        return not self._found and bool(self._completed or self._failed)
