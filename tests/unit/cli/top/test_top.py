"""`flux-bulk top`: what it says of a run, its keys, and the command in a terminal."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
from traces import BEGIN, write_trace

from parsl_flux_bulk.cli.flux_bulk import main
from parsl_flux_bulk.cli.top.summary import Summary
from parsl_flux_bulk.trace.format import HEAD, NO_TIMES
from parsl_flux_bulk.trace.reader import Trace
from parsl_flux_bulk.trace.writer import Writer

SHAPE = {"cores": 1, "gpus": 0, "workers": 4, "busy": 3, "starting": 0, "waiting": 0, "reason": ""}
TASKS = [[7, "f", "h/0", "running", 2.0], [8, "g", "", "waiting", 9.0], [9, "a", "h/1", "running", 5.0]]


class Run:
    """A run that goes on: its trace, and the requests that it gets."""

    def __init__(self, directory: Path) -> None:
        self.requests: list[str] = []
        self.path = str(directory / "run.trace")
        self.writer = Writer(self.path, self._take)
        self.writer.event("run", {"label": "here", "instance": "none"}, BEGIN)
        self.writer.event("capacity", {"nodes": 1, "cores": 4, "gpus": 0}, BEGIN)
        self.writer.tasks([HEAD.pack(n, 1, 0, 0, 0, BEGIN, BEGIN, BEGIN + n) + NO_TIMES for n in range(1, 7)])
        failure = {"task": 3, "app": "f", "type": "ValueError", "error": "bad\nmore", "notes": ["a note"]}
        self.writer.event("failure", {**failure, "stderr": "the end", "host": "h"})

    def _take(self, words: list[str]) -> None:
        self.requests.append(" ".join(words))
        if words[0] == "story":
            self.writer.event("story", {"task": int(words[1]), "lines": ["1.0 assign: worker 0 on h"]})

    def count(self, **fields: Any) -> None:
        counts = {"pending": 4, "running": 3, "done": 6, "failed": 0, "canceled": 0, "shapes": [SHAPE]}
        self.writer.event("status", {**counts, "tasks": TASKS, **fields}, BEGIN + 10)

    def summary(self, at: float = 10.0) -> Summary:
        trace = Trace(self.path)
        helpers.wait_until(lambda: trace.update() and trace.statuses and trace.failures)
        return Summary(trace, BEGIN + at)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.writer.close()


# -- what it says -------------------------------------------------------------------------------------


def test_rate_time_left_and_counts(run: Run) -> None:
    run.count()
    shown = run.summary()
    assert shown.title() == "here runs for 10s · none"
    assert shown.progress().endswith("6/13 · 0.6/s · 12s left")
    assert shown.progress().startswith("█" * 18 + "·")
    assert shown.counts() == "4 wait · 3 run · 6 completed"
    assert run.summary(at=20.0).title() == "here runs for 20s, silent for 10s · none"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"pending": 0}, "no task waits for them"),
        ({}, "tasks are on their way to them"),
        ({"shapes": [{**SHAPE, "starting": 2}]}, "2 worker(s) are starting"),
        ({"shapes": [{**SHAPE, "waiting": 4, "reason": "no room"}]}, "no room"),
        ({"held": 2, "held_reason": "needed: 8 cores"}, "needed: 8 cores"),
    ],
)
def test_why_cores_are_idle(run: Run, fields: dict[str, Any], why: str) -> None:
    run.count(**fields)
    assert run.summary().cores() == f"Cores: 3 of 4 busy; 1 idle: {why}"


def test_no_reason_is_given_where_every_core_is_busy(run: Run) -> None:
    run.count(task_job_cores=1, task_jobs=1)
    shown = run.summary()
    assert shown.cores() == "Cores: 4 of 4 busy"
    assert shown.shapes() == [
        "Workers of 1 core(s): 4 workers, 3 busy",
        "Task jobs: 1 in the instance, 0 wait",
    ]


def test_tasks_that_run_come_first_and_other_orders(run: Run) -> None:
    run.count()
    shown = run.summary()
    assert [row[0] for row in shown.tasks()] == [9, 7, 8]
    assert [row[0] for row in shown.tasks("app")] == [9, 7, 8]
    assert [row[0] for row in shown.tasks("task")] == [7, 8, 9]


def test_failures_and_details(run: Run) -> None:
    run.count()
    shown = run.summary()
    assert shown.failures() == [(3, "f", "ValueError: bad")]
    for part in ("ValueError on h: bad\nmore", "a note", "Standard error ended with\nthe end"):
        assert part in shown.details(3)
    assert shown.details(4) == ""


def test_a_run_that_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "a.trace", tasks=10, workers=4)
    assert main(["top", "--once", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("synthetic ended after") and "10/10" in lines[1]
    assert lines[2] == "0 wait · 0 run · 7 completed · 3 failed"
    assert lines[-1] == "Blocks: 1 joined"
    assert main(["top", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


# -- the application ----------------------------------------------------------------------------------


def drive(path: str, steps: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Run the application without a terminal."""
    pytest.importorskip("textual")
    from parsl_flux_bulk.cli.top.app import Top

    async def go() -> None:
        trace = Trace(path)
        trace.update()
        app = Top(trace)
        async with app.run_test(size=(100, 30)) as pilot:
            await steps(app, pilot)

    asyncio.run(go())


async def until(app: Any, pilot: Any, condition: Callable[[], object], bound: float = 60.0) -> None:
    for _ in range(int(bound / 0.05)):
        app.look()
        if condition():
            return
        await pilot.pause(0.05)
    raise AssertionError(f"not within {bound} s")


def test_keys_sort_open_and_cancel(run: Run) -> None:
    run.count()
    run.summary()

    async def steps(app: Any, pilot: Any) -> None:
        table = app.query_one("#tasks")

        def ids() -> list[str]:
            return [table.get_row_at(row)[0] for row in range(table.row_count)]

        await until(app, pilot, lambda: "watch" in run.requests)
        assert ids() == ["9", "7", "8"]
        await pilot.press("s")
        assert ids() == ["7", "8", "9"]
        assert app.chosen() == 9  # the cursor stays on its task
        await pilot.press("enter")

        def text() -> str:
            return " ".join(str(widget.render()) for widget in app.screen.query("#text"))

        await until(app, pilot, lambda: "assign: worker 0 on h" in text())
        assert "story 9" in run.requests
        await pilot.press("escape")
        await pilot.press("c")
        assert not any(request.startswith("cancel") for request in run.requests)
        await pilot.press("c")
        await until(app, pilot, lambda: "cancel 9" in run.requests)
        await pilot.press("tab", "o")
        await until(app, pilot, lambda: "the end" in text())

    drive(run.path, steps)


def test_a_run_that_cannot_be_reached_is_shown_all_the_same(run: Run) -> None:
    run.count()
    run.summary()
    os.unlink(run.path + ".control")

    async def steps(app: Any, pilot: Any) -> None:
        await until(app, pilot, lambda: not app.reached)
        assert "not named" in str(app.query_one("#tasks-heading").render())
        await pilot.press("c", "c")
        assert app.query_one("#tasks").row_count == 3

    drive(run.path, steps)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here")
@pytest.mark.parametrize("size", [(60, 20), (140, 40)])
def test_the_command_in_a_terminal(run: Run, size: tuple[int, int]) -> None:
    pytest.importorskip("textual")
    run.count()
    run.summary()
    tmux = ["tmux", "-L", f"top-{uuid.uuid4().hex[:8]}"]
    command = [sys.executable, "-m", "parsl_flux_bulk.cli.flux_bulk", "top", run.path]
    columns, rows = map(str, size)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SHLVL": "1"}
    start = [*tmux, "-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", rows, *command]
    subprocess.run(start, check=True, env=environment, timeout=60)

    def screen() -> str:
        done = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, timeout=60)
        return done.stdout

    try:
        helpers.wait_until(lambda: "Cores: 3 of 4 busy" in screen(), bound=60)
        assert "ValueError: bad" in screen()
        subprocess.run([*tmux, "send-keys", "q"], check=True, timeout=60)
        helpers.wait_until(lambda: not screen(), bound=60, what="the end of the command")
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, timeout=60)
