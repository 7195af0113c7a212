"""Many tasks while much goes wrong: nothing is lost, nothing runs twice, and nobody starves."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import apps
import pytest
from helpers import descendants, flux_instance, is_running, wait_lines

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import TaskCrashed, WorkerLost

BOUND = 100.0
TASKS = 10_000
KILL_PERIOD = 0.2

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


class Marks:
    """What apps.mark_number wrote down: which call started in which process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def started(self) -> list[tuple[int, int]]:
        if not self.path.exists():
            return []
        lines = (line.split() for line in self.path.read_text().splitlines())
        return [(int(number), int(pid)) for number, pid in lines]

    def running(self) -> list[int]:
        """Processes that have started something and are there."""
        return sorted(pid for pid in {pid for _, pid in self.started()} if is_running(pid))


def assert_none_ran_twice(started: list[tuple[int, int]]) -> None:
    twice = [number for number, times in Counter(number for number, _ in started).items() if times > 1]
    assert twice == []


def test_workers_are_killed_again_and_again(where: str, new_executor: NewExecutor, tmp_path: Path) -> None:
    marks, killed, chance = Marks(tmp_path / "marks"), set(), random.Random(1)
    # End only by the death of their workers; each of the other kills may hit a worker between two tasks.
    doomed = set(range(TASKS // 6, TASKS, TASKS // 6))
    with new_executor(where) as executor:
        futures = [
            executor.submit(apps.mark_number, {}, str(marks.path), n, 3600.0 if n in doomed else 0.001)
            for n in range(TASKS)
        ]
        deadline = time.monotonic() + BOUND
        while concurrent.futures.wait(futures, KILL_PERIOD).not_done:
            assert time.monotonic() < deadline, f"{sum(not f.done() for f in futures)} tasks have not ended"
            if running := marks.running():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid := chance.choice(running), signal.SIGKILL)
                    killed.add(pid)
    started = marks.started()
    assert_none_ran_twice(started)
    failed = {n: future.exception() for n, future in enumerate(futures) if future.exception() is not None}
    assert doomed <= failed.keys() and len(killed) >= len(failed)
    assert {n for n, _ in started} >= set(range(TASKS)) - set(failed)
    assert all(future.result() == n for n, future in enumerate(futures) if n not in failed)
    process_of, last_of = dict(started), {pid: n for n, pid in started}
    for n, error in failed.items():
        assert isinstance(error, TaskCrashed) and error.signal == signal.SIGKILL, error
        # It was what a killed process ran last, or it was killed before it could write that down.
        assert n not in process_of or (process_of[n] in killed and last_of[process_of[n]] == n)


def test_tasks_of_many_shapes(where: str, new_executor: NewExecutor) -> None:
    specifications: list[dict[str, Any]] = [{}, {"cores_per_task": 2}, {"num_tasks": 1}, {"num_tasks": 2}]
    with new_executor(where, worker_idle_time=0.5) as executor:
        futures = []
        for n in range(200):
            # Task jobs are the dear ones: one in twenty.
            specification = specifications[n % 2] if n % 20 else specifications[2 + n // 20 % 2]
            futures.append(executor.submit(apps.double, specification, n))
        assert [future.result(BOUND) for future in futures] == [2 * n for n in range(200)]


def flood(executor: FluxBulkExecutor, tasks: int, seconds: float) -> list[Future[Any]]:
    futures = [executor.submit(time.sleep, {}, seconds) for _ in range(tasks)]
    futures[tasks // 100].result(BOUND)  # it flows
    return futures


def test_a_large_task_job_gets_its_turn_in_a_flood(where: str, new_executor: NewExecutor) -> None:
    cores = len(os.sched_getaffinity(0))
    with new_executor(where) as executor:
        small = flood(executor, 3000 * cores, 0.01)
        large = executor.submit(apps.nothing, {"num_tasks": 1, "cores_per_task": cores})
        large.result(BOUND)
        unfinished = [future for future in small if not future.done()]
        assert len(unfinished) > 100, "the flood was over before"
        # And the flood goes on.
        unfinished[100].result(BOUND)
        for future in small:
            future.cancel()


def test_a_flood_gets_its_turn_in_a_stream_of_task_jobs(where: str, new_executor: NewExecutor) -> None:
    cores = len(os.sched_getaffinity(0))
    with new_executor(where) as executor:
        stream: list[Future[Any]] = []
        over = False

        def next_job(_: Future[Any] | None = None) -> None:
            if not over:
                future = executor.submit(time.sleep, {"num_tasks": cores}, 0.05)
                stream.append(future)
                future.add_done_callback(next_job)

        for _ in range(20):
            next_job()
        stream[0].result(BOUND)
        small = [executor.submit(apps.double, {}, n) for n in range(500)]
        assert [future.result(BOUND / 2) for future in small] == [2 * n for n in range(500)]
        assert sum(not future.done() for future in stream) >= 10, "the stream was over before"
        over = True
        for future in stream:
            future.cancel()


@pytest.mark.flux
def test_a_node_dies_in_a_flood(new_executor: NewExecutor, tmp_path: Path) -> None:
    marks = Marks(tmp_path / "marks")
    with flux_instance("-s4", "--test-exit-mode=leader") as uri, new_executor(uri) as executor:
        broker = subprocess.run(
            ["flux", "exec", "-r3", "flux", "getattr", "broker.pid"],
            env={**os.environ, "FLUX_URI": uri}, capture_output=True, text=True, timeout=BOUND, check=True,
        )  # fmt: skip
        cores = len(os.sched_getaffinity(0))
        told = [tmp_path / f"told-{n}" for n in range(4 * cores)]
        held = [executor.submit(apps.tell_and_wait, {}, str(path), f"{path}.gate") for path in told]
        running = [int(wait_lines(path, 1, BOUND, "a task on every core")[0]) for path in told]
        there = descendants(int(broker.stdout))
        on_the_node = [pid in there for pid in running]
        assert sum(on_the_node) == cores
        futures = [executor.submit(apps.mark_number, {}, str(marks.path), n, 0.005) for n in range(6000)]
        # One task stays on the node until it dies, so that at least one is lost with it.
        doomed = on_the_node.index(True)
        for n, path in enumerate(told):
            if n != doomed:
                Path(f"{path}.gate").touch()
        futures[1000].result(BOUND)
        os.kill(int(broker.stdout), signal.SIGKILL)
        assert isinstance(held[doomed].exception(BOUND), WorkerLost)
        not_done = concurrent.futures.wait(futures, BOUND).not_done
        assert not not_done
        failed = {n: future.exception() for n, future in enumerate(futures) if future.exception() is not None}
        assert executor.submit(apps.double, {}, 1).result(BOUND) == 2
    started = marks.started()
    assert_none_ran_twice(started)
    assert all(isinstance(error, WorkerLost) for error in failed.values()), failed
    assert len(failed) < 100 * cores  # a worker has 40 ms of tasks, each of 5 ms
    assert {n for n, _ in started} >= set(range(6000)) - set(failed)
