"""Canceling an executor's future: one that waits, one that runs on a warm worker, one that is a task job."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from pathlib import Path

import apps
import pytest
from helpers import is_running, wait_gone, wait_until

from parsl_flux_bulk import FluxBulkExecutor

BOUND = 60.0
TASK_JOB = {"num_tasks": 1}

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


def process_of(marks: Path, what: str = "the task runs") -> int:
    """The number of the process that runs a task of apps.mark, once it does."""
    return int(wait_until(lambda: marks.exists() and marks.read_text().split(), BOUND, what)[0])


def cores_of(executor: FluxBulkExecutor) -> int:
    return len(os.sched_getaffinity(0))


def fill(executor: FluxBulkExecutor, tmp_path: Path) -> list[Future[int]]:
    """Let a task that takes long run on every core."""
    futures = [
        executor.submit(apps.mark, {}, str(tmp_path / f"fill-{n}"), 1000) for n in range(cores_of(executor))
    ]
    for n in range(len(futures)):
        process_of(tmp_path / f"fill-{n}", "every core is busy")
    return futures


def test_a_task_that_waits_never_starts(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    running = fill(executor, tmp_path)
    marks = tmp_path / "marks"
    waiting = [executor.submit(apps.mark, spec, str(marks)) for spec in ({}, TASK_JOB) for _ in range(5)]
    assert all(future.cancel() for future in waiting)
    assert all(future.cancelled() for future in waiting)
    done, _ = concurrent.futures.wait(waiting, BOUND)
    assert done == set(waiting)
    assert all(future.cancel() for future in running)
    # Everything that could start has started when this ends.
    assert executor.submit(apps.double, {}, 1).result(BOUND) == 2
    assert executor.submit(apps.double, TASK_JOB, 1).result(BOUND) == 2
    assert not marks.exists()


def test_a_task_that_runs_is_ended(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    future = executor.submit(apps.mark, {}, str(marks), 1000)
    pid = process_of(marks)
    assert is_running(pid)
    assert future.cancel()
    assert future.cancelled() and future.done()
    with pytest.raises(CancelledError):
        future.result()
    wait_gone([pid], BOUND)
    assert future.cancel()
    assert executor.submit(apps.double, {}, 1).result(BOUND) == 2


def test_a_task_job_is_ended(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    future = executor.submit(apps.mark, TASK_JOB, str(marks), 1000)
    pid = process_of(marks)
    assert future.cancel()
    wait_gone([pid], BOUND)
    wait_until(lambda: no_task_job(executor), BOUND, "its job has ended")


def no_task_job(executor: FluxBulkExecutor) -> bool:
    report = executor.status_report()
    return report is not None and report.tasks.task_jobs == report.tasks.running == 0


def test_what_queues_behind_a_cancelled_task_moves_and_runs_once(
    where: str, new_executor: NewExecutor, tmp_path: Path
) -> None:
    with new_executor(where) as executor:
        # Quick ones first, so that a worker is given many at a time.
        assert [f.result(BOUND) for f in [executor.submit(apps.double, {}, 1) for _ in range(200)]]
        marks, numbers = tmp_path / "marks", tmp_path / "numbers"
        long = [executor.submit(apps.mark, {}, str(marks), 1000) for _ in range(cores_of(executor))]
        behind = [executor.submit(apps.mark_number, {}, str(numbers), n) for n in range(50)]
        wait_until(lambda: marks.exists() and len(marks.read_text().split()) == len(long), BOUND)
        assert long[0].cancel()
        assert [future.result(BOUND) for future in behind] == list(range(50))
        assert sorted(int(line.split()[0]) for line in numbers.read_text().splitlines()) == list(range(50))
        assert not any(future.done() for future in long[1:])
        for future in long[1:]:
            future.cancel()


def test_a_task_that_has_ended_cannot_be_cancelled(executor: FluxBulkExecutor) -> None:
    future = executor.submit(apps.double, {}, 4)
    assert future.result(BOUND) == 8
    assert not future.cancel()
    assert future.result() == 8


def test_canceling_everything_at_random(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers"
    futures = [executor.submit(apps.mark_number, {}, str(numbers), n, 0.01) for n in range(40)]
    futures[5].exception(BOUND)
    for future in futures[::3]:
        future.cancel()
    concurrent.futures.wait(futures, BOUND)
    for n, future in enumerate(futures):
        if not future.cancelled():
            assert future.result() == n
        else:
            assert n % 3 == 0
    started = [int(line.split()[0]) for line in numbers.read_text().splitlines()]
    assert len(started) == len(set(started))
