"""What a report shows, computed from a trace: arrays of tasks, rows of the timeline, rates, phases."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from parsl_flux_bulk.trace.format import COMPLETED
from parsl_flux_bulk.trace.reader import Trace

BINS = 400
"""Intervals into which the time of a run is divided, for curves."""

PHASES = (
    ("queue", "submitted", "assigned", "until a worker got the task, or its job was submitted"),
    (
        "assign",
        "assigned",
        "started",
        "on the way to the worker and in its queue, or of a job: in the instance's queue",
    ),
    ("run", "started", "ended", "in the call, or the processes of the job"),
    ("return", "ended", "resolved", "until the future got the result, or the end of the job was reported"),
)
"""Phases of a task: name, the times between which it lies, what it is."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Bars:
    """Bars of the timeline: jobs or blocks.

    Attributes
    ----------
    left, right : list of float
        Seconds since the start of the run.
    row : list of int
    label : list of str
    """

    left: list[float]
    right: list[float]
    row: list[int]
    label: list[str]


class RunData:
    """The tasks of a trace as arrays, with times in seconds since the start of the run.

    Attributes
    ----------
    noun : str
        What the trace calls a task: "job" in a trace of `bulksubmit`, else "task".
    start, seconds : float
        When the run began (since the epoch), and how long it took.
    begin, end : array of float
        When each task occupied its cores; of a task whose start is not known, since its job was submitted.
    cores : array of int
    row : array of int
        Of the timeline.
    rows : list of str
        Names of the rows: those of workers, then those of jobs.
    worker_rows : int
        Number of rows of workers.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.noun = "job" if trace.run.get("kind") == "bulksubmit" else "task"
        columns = trace.columns
        self.times = {
            name: np.array(getattr(columns, name), dtype=np.float64)
            for name in ("submitted", "assigned", "started", "ended", "resolved")
        }
        self.id = np.array(columns.id, dtype=np.int64)
        self.app = np.array(columns.app, dtype=np.int64)
        self.worker = np.array(columns.worker, dtype=np.int64)
        self.job = np.array(columns.job, dtype=np.int64)
        self.outcome = np.array(columns.outcome, dtype=np.int64)
        self.start, self.seconds = self._span()
        for values in self.times.values():
            values -= self.start
        times = self.times
        self.begin = np.where(np.isnan(times["started"]), times["assigned"], times["started"])
        self.end = np.where(np.isnan(times["ended"]), times["resolved"], times["ended"])
        self.begin = np.fmin(np.where(np.isnan(self.begin), self.end, self.begin), self.end)
        self.cores = self._cores()
        self.rows: list[str] = []
        self.row: Any = np.zeros(len(self.id), dtype=np.int64)
        self._place_workers()
        self.worker_rows = len(self.rows)
        self._place_jobs()
        self.jobs = self._bars_of_jobs()
        self.blocks = self._bars_of_blocks()

    def __len__(self) -> int:
        return len(self.id)

    def _span(self) -> tuple[float, float]:
        begin = [float(self.trace.run.get("time", math.inf))]
        end = [begin[0]] + [status["time"] for status in self.trace.statuses[-1:]]
        if len(self.id):
            begin.append(float(np.nanmin(self.times["submitted"])))
            end.append(float(np.nanmax(self.times["resolved"])))
        start = min(time for time in begin if not math.isnan(time))
        if math.isinf(start):
            start = 0.0
        return start, max(1e-3, max(time for time in end if not math.isnan(time)) - start)

    def _cores(self) -> Any:
        of_worker = {index: worker["cores"] for index, worker in self.trace.workers.items()}
        of_job = {number: job.get("cores", 1) for number, job in self.trace.jobs.items()}
        both = zip(self.worker.tolist(), self.job.tolist(), strict=True)
        return np.array([of_worker.get(w) or of_job.get(j, 1) for w, j in both], dtype=np.float64)

    # -- rows of the timeline -----------------------------------------------------------------------

    def _place_workers(self) -> None:
        """Give each worker a row; workers of one host that do not overlap share a row."""
        found = np.unique(self.worker[self.worker > 0])
        if not len(found):
            return
        first = np.full(int(found[-1]) + 1, np.inf)
        last = np.full(int(found[-1]) + 1, -np.inf)
        np.fmin.at(first, self.worker, self.begin)
        np.fmax.at(last, self.worker, self.end)
        by_host: dict[str, list[int]] = {}
        for index in sorted(found.tolist(), key=lambda index: (first[index], index)):
            by_host.setdefault(self.trace.workers.get(index, {}).get("host", ""), []).append(index)
        table: Any = np.zeros(int(found[-1]) + 1, dtype=np.int64)
        for host, workers in sorted(by_host.items()):
            rows = _rows(zip(first[workers].tolist(), last[workers].tolist(), strict=True))
            table[workers] = np.array(rows) + len(self.rows)
            self.rows += [f"{host}/{number}" for number in range(max(rows) + 1)]
        mine = self.worker > 0
        self.row[mine] = table[self.worker[mine]]

    def _place_jobs(self) -> None:
        """Give tasks with jobs of their own rows, as few as possible."""
        alone = np.flatnonzero(self.worker == 0)
        alone = alone[np.argsort(self.begin[alone], kind="stable")]
        rows = _rows(zip(self.begin[alone].tolist(), self.end[alone].tolist(), strict=True))
        self.row[alone] = np.array(rows, dtype=np.int64) + len(self.rows)
        kind = "" if self.noun == "job" else "task job "
        self.rows += [f"{kind}{number + 1}" for number in range(max(rows, default=-1) + 1)]

    def _bars_of_jobs(self) -> Bars:
        """Return the worker jobs."""
        spans = []
        for number, job in self.trace.jobs.items():
            left = job.get("started") or job.get("submitted")
            if job.get("kind") == "workers" and left is not None:
                right = job.get("ended") or self.start + self.seconds
                about = f"{job.get('slots')} workers, {job.get('status', 'runs')}"
                label = f"job {job.get('id') or number}: {about}"
                spans.append((left - self.start, right - self.start, label))
        return _packed(spans)

    def _bars_of_blocks(self) -> Bars:
        spans = []
        for name, block in self.trace.blocks.items():
            left = block.get("joined") or block.get("launched")
            if left is not None:
                right = block.get("ended") or self.start + self.seconds
                label = f"block {name}: {block.get('cores', '?')} cores, {block.get('state')}"
                spans.append((left - self.start, right - self.start, label))
        return _packed(spans)

    # -- curves ---------------------------------------------------------------------------------------

    @property
    def edges(self) -> Any:
        """Edges of the intervals (s)."""
        return np.linspace(0.0, self.seconds, BINS + 1)

    def rates(self) -> tuple[Any, Any, Any]:
        """Return edges of intervals (s), and tasks a second in each: all that ended, and not completed."""
        # Of a few tasks, short intervals would show one task as a high rate.
        bins = min(BINS, max(8, len(self) // 4))
        edges = np.linspace(0.0, self.seconds, bins + 1)
        resolved = np.clip(self.times["resolved"], 0.0, self.seconds)
        every, _ = np.histogram(resolved, edges)
        bad, _ = np.histogram(resolved[self.outcome != COMPLETED], edges)
        return edges, every * bins / self.seconds, bad * bins / self.seconds

    def running(self) -> Any:
        """Return the cores that tasks occupied, on average in each interval."""
        # The integral of the running cores up to t is that of all begins less that of all ends.
        edges = self.edges
        total = _integral(self.begin, self.cores, edges) - _integral(self.end, self.cores, edges)
        return np.maximum(0.0, np.diff(total) / np.diff(edges))

    def capacity(self) -> tuple[list[float], list[float]]:
        """Return the steps of the cores that the instance had."""
        times, cores = [], []
        for event in self.trace.capacities:
            times.append(min(max(0.0, event["time"] - self.start), self.seconds))
            cores.append(float(event["cores"]))
        if times:
            times.append(self.seconds)
            cores.append(cores[-1])
        return times, cores

    def busy(self, rows: int, bins: int) -> Any:
        """Return for groups of rows and intervals which part of the time was busy, from 0 to 255."""
        edges = np.linspace(0.0, self.seconds, bins + 1)
        each = max(1, math.ceil(len(self.rows) / rows))
        height = math.ceil(max(1, len(self.rows)) / each)
        image = np.zeros((height, bins))
        group: Any = self.row // each
        order: Any = np.argsort(group, kind="stable")
        bounds: Any = np.searchsorted(group[order], np.arange(height + 1))
        for number in range(height):
            mine = order[bounds[number] : bounds[number + 1]]
            ones = np.ones(len(mine))
            total = _integral(self.begin[mine], ones, edges) - _integral(self.end[mine], ones, edges)
            image[number] = np.diff(total) / (np.diff(edges) * each)
        return np.clip(np.ceil(image * 255), 0, 255).astype(np.uint8)

    def phases(self) -> dict[str, tuple[Any, float]]:
        """Return the quantiles (s) of each phase, and its total (s), where it is known of any task."""
        found: dict[str, tuple[Any, float]] = {}
        for name, first, then, _ in PHASES:
            spans = self.times[then] - self.times[first]
            spans = np.maximum(0.0, spans[~np.isnan(spans)])  # clocks of two hosts may differ
            if len(spans):
                found[name] = np.quantile(spans, QUANTILES), float(spans.sum())
        return found

    def apps(self) -> list[dict[str, Any]]:
        """Return a row for each app: counts, and seconds that its tasks waited and ran."""
        rows = []
        for index in np.unique(self.app).tolist():
            mine = self.app == index
            run = (self.end - self.begin)[mine]
            queue = (self.begin - self.times["submitted"])[mine]
            queue, run = queue[~np.isnan(queue)], run[~np.isnan(run)]
            rows.append(
                {
                    "app": self.trace.apps.get(index, "?"),
                    "tasks": int(mine.sum()),
                    "bad": int((self.outcome[mine] != COMPLETED).sum()),
                    "core seconds": float((run * self.cores[mine]).sum()) if len(run) == mine.sum() else 0.0,
                    "median": float(np.median(run)) if len(run) else math.nan,
                    "p95": float(np.quantile(run, 0.95)) if len(run) else math.nan,
                    "longest": float(run.max()) if len(run) else math.nan,
                    "waited": float(np.median(queue)) if len(queue) else math.nan,
                }
            )
        return sorted(rows, key=lambda row: -row["core seconds"])


def _integral(steps: Any, heights: Any, at: Any) -> Any:
    """Integrate a sum of steps, each of a height from its time on, up to the times `at`."""
    order = np.argsort(steps, kind="stable")
    steps, heights = steps[order], heights[order]
    count = np.searchsorted(steps, at, side="right")
    area = np.concatenate(([0.0], np.cumsum(heights)))[count] * at
    return area - np.concatenate(([0.0], np.cumsum(heights * steps)))[count]


def _rows(spans: Iterable[tuple[float, float]]) -> list[int]:
    """Return a row for each span, in the order of their begins: as few as possible, without overlaps."""
    free: list[tuple[float, int]] = []  # the end of the last span in each row
    rows: list[int] = []
    for left, right in spans:
        row = heapq.heappop(free)[1] if free and free[0][0] <= left else len(free)
        heapq.heappush(free, (right, row))
        rows.append(row)
    return rows


def _packed(spans: list[tuple[float, float, str]]) -> Bars:
    """Place spans in as few rows as possible."""
    spans.sort()
    rows = _rows((left, right) for left, right, _ in spans)
    return Bars([span[0] for span in spans], [span[1] for span in spans], rows, [span[2] for span in spans])
