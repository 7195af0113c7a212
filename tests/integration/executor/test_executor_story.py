"""FluxBulkExecutor.story: of a task that ran, one that waits, and of futures of others."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import apps
import parsl
import pytest
from helpers import wait_until
from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor

BOUND = 60.0

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


def test_a_task_that_ran_and_one_that_waits(new_executor: NewExecutor, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with new_executor("local", worker_idle_time=30) as executor:
        first = executor.submit(apps.double, {}, 1)
        assert first.result(BOUND) == 2
        events = [record.event for record in executor.story(first)]
        assert events[:3] == ["submit", "connect", "assign"]
        marks = [tmp_path / f"mark-{n}" for n in range(cores)]
        running = [executor.submit(apps.mark, {}, str(mark), 1000) for mark in marks]
        wait_until(lambda: all(mark.exists() for mark in marks), BOUND, "every core is busy")
        waiting = executor.submit(apps.double, {}, 2)
        wait_until(
            lambda: f"{cores} are busy" in str(executor.story(waiting)[-1]), BOUND, "the story says so"
        )
        *_, now = executor.story(waiting)
        assert now.cause.startswith("one of 1 tasks that wait for a worker")
        *_, now = executor.story(running[0])
        assert now.cause.startswith("in the queue of worker ")
        assert all(future.cancel() for future in running)
        assert waiting.result(BOUND) == 4
        wait_until(
            lambda: any(record.cause == "canceled" for record in executor.story(running[0])),
            BOUND,
            "the cancellation is recorded",
        )


def test_futures_of_apps_and_futures_of_others(tmp_path: Path) -> None:
    executor = FluxBulkExecutor(instance="local")
    with parsl.load(Config(executors=[executor], run_dir=str(tmp_path))):
        double = parsl.python_app(apps.double)
        future = double(3)
        assert future.result() == 6
        assert "assign" in [record.event for record in executor.story(future)]
        blocked = double(never := Future())
        with pytest.raises(ValueError, match="when its dependencies have ended"):
            executor.story(blocked)
        with pytest.raises(ValueError, match="expected the future of a task"):
            executor.story(never)
        never.set_result(1)
        assert blocked.result() == 2
