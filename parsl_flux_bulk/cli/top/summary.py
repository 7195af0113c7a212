"""What the live view of a run says, computed from its trace. No terminal here."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from typing import Any

from parsl_flux_bulk.jobspec.duration import format_duration
from parsl_flux_bulk.trace.reader import Trace

RATE_WINDOW = 10.0
"""Seconds over which the rate is measured."""

STALE = 5.0
"""Seconds without a count after which a run that has work is said to be silent."""

SHOWN_FAILURES = 30

BAR_WIDTH = 40

TASK_COLUMNS = ("task", "app", "where", "state", "seconds")
FAILURE_COLUMNS = ("task", "app", "error")


_ORDER = {"running": 0, "submitted": 1}


class Summary:
    """The state of a run at one moment.

    Parameters
    ----------
    trace : Trace
    now : float
        Seconds since the epoch.
    """

    def __init__(self, trace: Trace, now: float | None = None) -> None:
        self._trace = trace
        self._now = time.time() if now is None else now
        self._status: dict[str, Any] = trace.statuses[-1] if trace.statuses else {}

    @property
    def ended(self) -> int:
        """Number of tasks that ended."""
        return len(self._trace.columns)

    @property
    def open(self) -> int:
        """Number of tasks that wait or run, by the last count."""
        counted = self._count("pending") + self._count("running")
        return 0 if self._trace.finished else counted

    @property
    def total(self) -> int:
        """Number of tasks in all, as far as is known."""
        # By the last count: what has ended since was open then.
        counted: int = sum(self._count(name) for name in ("pending", "running", "done", "failed", "canceled"))
        return max(int(self._trace.run.get("total") or 0), self.ended, counted)

    @property
    def rate(self) -> float:
        """Tasks that ended a second, lately."""
        resolved = self._trace.columns.resolved
        start = self._trace.run.get("time", self._now)
        span: float = max(min(RATE_WINDOW, self._now - start), 0.1)
        # Tasks are written as they end, so that the times are in order.
        return (len(resolved) - bisect.bisect_left(resolved, self._now - span)) / span

    def lines(self) -> list[str]:
        """Return all about the run but its tasks and failures."""
        lines = [self.title(), self.progress(), self.counts(), self.cores(), *self.shapes(), self.blocks()]
        return [line for line in lines if line]

    def title(self) -> str:
        """Return what runs, where, and for how long."""
        run, trace = self._trace.run, self._trace
        began = run.get("time", self._now)
        last = max([trace.statuses[-1]["time"] if trace.statuses else began, *trace.columns.resolved[-1:]])
        took = format_duration((last if trace.finished else self._now) - began)
        state = f"ended after {took}" if trace.finished else f"runs for {took}"
        if not trace.finished and self.open and self._now - last > STALE:
            state += f", silent for {format_duration(self._now - last)}"
        return f"{run.get('label', '?')} {state} · {run.get('instance', '')}"

    def progress(self) -> str:
        """Return the bar: ended tasks, rate and time left."""
        fraction = self.ended / self.total if self.total else 0.0
        bar = "█" * int(fraction * BAR_WIDTH)
        parts = [f"{self.ended}/{self.total}", f"{self.rate:.1f}/s"]
        if self.rate > 0 and self.open:
            parts.append(f"{format_duration((self.total - self.ended) / self.rate)} left")
        return f"{bar:·<{BAR_WIDTH}} {' · '.join(parts)}"

    def counts(self) -> str:
        """Return how many tasks are in which state."""
        ended = Counter(self._trace.columns.outcome)
        bad = [(ended[1], "failed"), (ended[2], "lost"), (ended[3], "canceled")]
        shown = [(self._count("pending"), "wait"), (self._count("running"), "run"), (ended[0], "completed")]
        return " · ".join(f"{number} {name}" for number, name in [*shown, *(pair for pair in bad if pair[0])])

    def cores(self) -> str:
        """Return how many cores are busy, and why others are idle."""
        if self._trace.finished:
            return "Cores: the run ended"
        there = self._trace.capacities[-1]["cores"] if self._trace.capacities else 0
        shapes = self._status.get("shapes", [])
        busy = sum(shape["busy"] * shape["cores"] for shape in shapes) + self._count("task_job_cores")
        if not there:
            return f"Cores: {busy:g} busy"
        idle = max(0, there - busy)
        why = self._why_idle(shapes) if idle else ""
        return f"Cores: {busy:g} of {there} busy" + (f"; {idle:g} idle: {why}" if why else "")

    def _why_idle(self, shapes: list[dict[str, Any]]) -> str:
        reasons = [shape["reason"] for shape in shapes if shape["waiting"] and shape["reason"]]
        if self._count("held") and self._status.get("held_reason"):
            reasons.append(self._status["held_reason"])
        if reasons:
            return "; ".join(dict.fromkeys(reasons))
        if starting := sum(shape["starting"] for shape in shapes):
            return f"{starting} worker(s) are starting"
        if not self._count("pending"):
            return "no task waits for them"
        return "tasks are on their way to them"

    def shapes(self) -> list[str]:
        """Return a line for the workers of each shape."""
        lines = []
        for shape in self._status.get("shapes", []):
            need = f"{shape['cores']:g} core(s)" + (f", {shape['gpus']:g} GPU(s)" if shape["gpus"] else "")
            parts = [f"{shape['workers']} workers", f"{shape['busy']} busy"]
            parts += [f"{shape['starting']} starting"] * bool(shape["starting"])
            parts += [f"{shape['waiting']} tasks wait"] * bool(shape["waiting"])
            lines.append(f"Workers of {need}: {', '.join(parts)}")
        jobs = self._count("task_jobs")
        if jobs or self._count("held"):
            lines.append(f"Task jobs: {jobs} in the instance, {self._count('held')} wait")
        return lines

    def blocks(self) -> str:
        """Return how many blocks are in which state; "" if there are none."""
        states = Counter(block.get("state", "?") for block in self._trace.blocks.values())
        return "Blocks: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items())) if states else ""

    def tasks(self, sort: str = "seconds") -> list[tuple[Any, ...]]:
        """Return the tasks that run and wait, as far as they are named; columns are `TASK_COLUMNS`."""
        rows = [tuple(row) for row in self._status.get("tasks", [])] if not self._trace.finished else []
        if sort == "seconds":  # those that run before those that wait, the longest first
            return sorted(rows, key=lambda row: (_ORDER.get(row[3], 2), -row[4]))
        return sorted(rows, key=lambda row: row[TASK_COLUMNS.index(sort)])

    def failures(self) -> list[tuple[Any, ...]]:
        """Return the last failures, the latest first; columns are `FAILURE_COLUMNS`."""
        return [
            (one["task"], one["app"], f"{one['type']}: {one['error']}".removeprefix(": ").partition("\n")[0])
            for one in reversed(self._trace.failures[-SHOWN_FAILURES:])
        ]

    def details(self, task_id: int) -> str:
        """Return all that is known of a task: its story, its error and the end of its standard error."""
        parts = []
        stories = [story for story in self._trace.stories if story["task"] == task_id]
        if stories:
            parts += ["Story", *(f"  {line}" for line in stories[-1]["lines"]), ""]
        for failure in self._trace.failures:
            if failure["task"] == task_id:
                where = f" on {failure['host']}" if failure["host"] else ""
                parts += [f"{failure['type'] or 'Failed'}{where}: {failure['error']}", *failure["notes"], ""]
                if failure["stderr"]:
                    parts += ["Standard error ended with", failure["stderr"]]
        return "\n".join(parts)

    def _count(self, name: str) -> Any:
        return self._status.get(name, 0)
