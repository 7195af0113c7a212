"""Read trace files, also while they are written."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parsl_flux_bulk.errors import TraceError
from parsl_flux_bulk.trace.format import CHUNK, EVENT, MAGIC, OUTCOMES, SUFFIX, TASK, TASKS

TIMES = ("submitted", "assigned", "started", "ended", "resolved")

_READ_SIZE = 1 << 22


@dataclass
class Columns:
    """The records of tasks, one array a column; `Trace.tasks` replaces the indices with names."""

    id: array[int] = field(default_factory=lambda: array("Q"))
    app: array[int] = field(default_factory=lambda: array("I"))
    worker: array[int] = field(default_factory=lambda: array("I"))
    job: array[int] = field(default_factory=lambda: array("I"))
    outcome: array[int] = field(default_factory=lambda: array("B"))
    submitted: array[float] = field(default_factory=lambda: array("d"))
    assigned: array[float] = field(default_factory=lambda: array("d"))
    resolved: array[float] = field(default_factory=lambda: array("d"))
    started: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.id)

    def add(self, content: bytes) -> None:
        """Add the records of one chunk."""
        columns = zip(*TASK.iter_unpack(content), strict=True)
        for name, values in zip(_ORDER, columns, strict=True):
            getattr(self, name).extend(values)


_ORDER = ("id", "app", "worker", "job", "outcome", "submitted", "assigned", "resolved", "started", "ended")


class Trace:
    """What a trace file has told so far.

    Attributes
    ----------
    run : dict
        The event ``run``: what ran, where, with which configuration.
    columns : Columns
        The tasks that ended, as numbers.
    apps : dict of int to str
    workers, jobs : dict of int to dict
        By index and by number; the events of one job are merged.
    blocks : dict of str to dict
        The events of one block are merged; its state is the latest.
    statuses : list of dict
        Counts, about one a second while there is work.
    failures, stories : list of dict
    capacities : list of dict
    finished : bool
        Whether the run ended by itself.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.run: dict[str, Any] = {}
        self.columns = Columns()
        self.apps: dict[int, str] = {}
        self.workers: dict[int, dict[str, Any]] = {}
        self.jobs: dict[int, dict[str, Any]] = {}
        self.blocks: dict[str, dict[str, Any]] = {}
        self.statuses: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.stories: list[dict[str, Any]] = []
        self.capacities: list[dict[str, Any]] = []
        self.finished = False
        self._offset = 0
        self._rest = b""
        self._begun = False

    def update(self) -> bool:
        """Read what was added to the file; return whether there was anything.

        Raises
        ------
        TraceError
            The file is not a trace.
        OSError
        """
        before = self._offset
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            while data := file.read(_READ_SIZE):
                self._offset += len(data)
                self._take(self._rest + data)
        return self._offset > before

    def _take(self, data: bytes) -> None:
        start = 0
        if not self._begun:
            if data[: len(MAGIC)] != MAGIC[: len(data)]:
                raise TraceError(f"{self.path} is not a trace file: it does not begin with {MAGIC.decode()}")
            self._begun = len(data) >= len(MAGIC)
            start = len(MAGIC) if self._begun else 0
        size = len(data)
        while size - start >= CHUNK.size:
            kind, length = CHUNK.unpack_from(data, start)
            end = start + CHUNK.size + length
            if end > size:
                break
            content = data[start + CHUNK.size : end]
            if kind == TASKS:
                self.columns.add(content)
            elif kind == EVENT:
                self._event(json.loads(content))
            else:
                raise TraceError(f"{self.path} has a chunk of unknown kind {kind!r}, of a later version")
            start = end
        self._rest = data[start:]

    def _event(self, event: dict[str, Any]) -> None:
        name = event["event"]
        if name == "run":
            self.run = event
        elif name == "app":
            self.apps[event["index"]] = event["name"]
        elif name == "worker":
            self.workers[event["index"]] = event
        elif name == "job":
            self.jobs.setdefault(event["job"], {}).update(event)
        elif name == "block":
            self.blocks.setdefault(event["block"], {}).update(event)
        elif name == "status":
            self.statuses.append(event)
        elif name == "failure":
            self.failures.append(event)
        elif name == "story":
            self.stories.append(event)
        elif name == "capacity":
            self.capacities.append(event)
        elif name == "end":
            self.finished = True
        # Others are of a later version, and say nothing that these do not.

    @property
    def tasks(self) -> dict[str, list[Any]]:
        """The tasks that ended, by column: what a data frame is made of."""
        columns, workers, jobs = self.columns, self.workers, self.jobs
        by_worker = [workers.get(index, {}) for index in columns.worker]
        numbers = [w.get("job", 0) or own for w, own in zip(by_worker, columns.job, strict=True)]
        by_job = [jobs.get(number, {}) for number in numbers]
        return {
            "task": list(columns.id),
            "app": [self.apps.get(index, "") for index in columns.app],
            **{name: list(getattr(columns, name)) for name in TIMES},
            "outcome": [OUTCOMES[code] for code in columns.outcome],
            "worker": [w.get("name", "") for w in by_worker],
            "host": [w.get("host") or j.get("host", "") for w, j in zip(by_worker, by_job, strict=True)],
            "cores": [w.get("cores") or j.get("cores", 0) for w, j in zip(by_worker, by_job, strict=True)],
            "gpus": [w.get("gpus") or j.get("gpus", 0) for w, j in zip(by_worker, by_job, strict=True)],
            "job": [job.get("id", "") for job in by_job],
        }


def find(place: str | os.PathLike[str]) -> list[str]:
    """Return the trace files of a run directory, the latest last; of a file, that file.

    Raises
    ------
    TraceError
        There is none.
    """
    path = Path(place)
    if path.is_file():
        return [str(path)]
    found = sorted(path.rglob(f"*{SUFFIX}"), key=lambda each: each.stat().st_mtime) if path.is_dir() else []
    if not found:
        what = "has no trace" if path.exists() else "does not exist"
        raise TraceError(
            f"{path} {what}: give the run directory of an executor with trace=True, such as runinfo/000, or "
            "the file of `bulksubmit --trace FILE`"
        )
    return [str(each) for each in found]


def read(place: str | os.PathLike[str]) -> Trace:
    """Read a trace file, or the latest one of a run directory.

    Raises
    ------
    TraceError
        There is none, or it is not a trace file.
    """
    trace = Trace(find(place)[-1])
    trace.update()
    return trace


def tasks(place: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return the tasks of a trace by column, for ``pandas.DataFrame(tasks("runinfo/000"))``.

    Of a run directory with several executors, the tasks of all, with the column ``executor``.
    """
    table: dict[str, list[Any]] = {}
    for trace in _read_all(place):
        columns = trace.tasks
        label = trace.run.get("label", "")
        for name, values in {"executor": [label] * len(columns["task"]), **columns}.items():
            table.setdefault(name, []).extend(values)
    return table


def _read_all(place: str | os.PathLike[str]) -> Iterator[Trace]:
    for path in find(place):
        trace = Trace(path)
        trace.update()
        yield trace
