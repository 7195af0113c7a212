"""Blocks that are killed amid tasks: what is lost with them, and what is not."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import apps
import helpers
import parsl
import psutil
import pytest
from block_executors import (
    BOUND,
    KINDS,
    Local,
    Running,
    block_programs,
    members,
    new_executor,
    wait_members,
)
from parsl.jobs.states import JobState

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import BlockLost


def processes_of_block(program: psutil.Process) -> list[psutil.Process]:
    """Return a block's program, its broker, and what runs there: with Flux, the tasks are the broker's."""
    parent = program.parent()
    if parent is not None and "flux-broker" in parent.name():
        return [program, *program.children(recursive=True), parent, *parent.children(recursive=True)]
    return [program, *program.children(recursive=True)]


def kill_a_block(directory: Path, task: int | None = None) -> None:
    """End one block, the one that runs a task if its pid is given, as its node's end would."""
    blocks = [processes_of_block(program) for program in block_programs(directory)]
    if task is not None:
        blocks = [block for block in blocks if any(process.pid == task for process in block)]
    for victim in blocks[0]:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass


def under_load(executor: FluxBulkExecutor, tmp_path: Path, count: int) -> tuple[list[Any], list[Any], Path]:
    """Start tasks as apps and as jobs of their own, so many in all, on two blocks; kill one amid them.

    The first task returned runs there, and nowhere ends before.
    """
    ran, told, gate = tmp_path / "ran", tmp_path / "told", tmp_path / "gate"
    mark = parsl.python_app(apps.mark_number)

    @parsl.python_app
    def alone(path: str, number: int, parsl_resource_specification: dict[str, Any]) -> int:
        import apps

        return apps.mark_number(path, number, 0.1)

    wait_members(executor, 2)
    spec = {"num_tasks": 1}
    held = parsl.python_app(apps.tell_and_wait)(str(told), str(gate))
    futures = [mark(str(ran), number, 0.005) for number in range(count - 20)]
    jobs = [alone(str(ran), number, parsl_resource_specification=spec) for number in range(count - 20, count)]
    futures += jobs
    helpers.wait_until(lambda: sum(f.done() for f in futures) > count // 20, BOUND, "they run")
    (task,) = helpers.wait_lines(told, 1, BOUND, "the first task runs")
    kill_a_block(tmp_path, task=int(task))
    gate.touch()
    futures.insert(0, held)
    return futures, [future.exception(timeout=BOUND) for future in futures], ran


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_block_takes_with_it_what_it_ran_and_nothing_else(
    running: Running, kind: str, tmp_path: Path
) -> None:
    with running(new_executor(kind)) as executor:
        futures, errors, ran = under_load(executor, tmp_path, 2000)
        assert isinstance(errors[0], BlockLost)
        lost = [error for error in errors if error is not None]
        assert {type(error) for error in lost} == {BlockLost}
        # A worker has 40 ms of tasks, each of 5 ms, or of 1 ms before one has ended.
        assert len(lost) < 100 * len(os.sched_getaffinity(0))
        assert re.search(r"block [01]", str(lost[0]))
        numbers = [int(line.split()[0]) for line in ran.read_text().splitlines()]
        assert len(numbers) == len(set(numbers)), "a task ran twice"
        ended = [future for future, error in zip(futures, errors, strict=True) if error is None]
        assert {future.result() for future in ended} <= set(numbers)
        assert members(executor) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_retry_all_tasks_outlive_a_killed_block(running: Running, kind: str, tmp_path: Path) -> None:
    with running(new_executor(kind), retries=1) as executor:
        futures, errors, _ = under_load(executor, tmp_path, 2000)
        assert errors == [None] * 2001
        assert [future.result() for future in futures] == [True, *range(2000)]


@pytest.mark.parametrize("kind", KINDS)
def test_another_block_takes_over_when_the_only_one_is_killed(
    running: Running, kind: str, tmp_path: Path
) -> None:
    executor = new_executor(kind, Local(init_blocks=1, max_blocks=1))
    with running(executor, strategy="simple", retries=1):
        mark = parsl.python_app(apps.mark)
        futures = [mark(os.devnull, 0.2) for _ in range(30)]
        helpers.wait_until(lambda: futures[0].done(), BOUND, "they run")
        kill_a_block(tmp_path)
        assert all(future.result(timeout=BOUND) for future in futures)
        assert set(executor.status_facade) == {"0", "1"}
        assert executor.status()["0"].state is JobState.COMPLETED
        assert executor.submit(os.getenv, {}, "PARSL_WORKER_BLOCK_ID").result(timeout=BOUND) == "1"
