"""Others in the same Flux instance: tasks run on what is free, at once; what waits says why."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import apps
import helpers
import pytest

from parsl_flux_bulk import FluxBulkExecutor

pytestmark = pytest.mark.flux

BOUND = 60.0
BROKERS = 2
CORES = BROKERS * len(os.sched_getaffinity(0))

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


def flux(uri: str, *arguments: str) -> str:
    environment = {**os.environ, "FLUX_URI": uri}
    return subprocess.run(
        ["flux", *arguments], env=environment, check=True, capture_output=True, text=True, timeout=BOUND
    ).stdout.strip()


@pytest.fixture
def uri() -> Iterator[str]:
    """An instance of several brokers, for one test alone."""
    with helpers.flux_instance(f"-s{BROKERS}") as uri:
        yield uri


def hold(uri: str, cores: int) -> str:
    """Run a job of another program that holds so many cores."""
    job = flux(uri, "submit", f"-n{cores}", "sleep", "600")
    flux(uri, "job", "wait-event", "-t", str(BOUND), job, "start")
    return job


def at_once(executor: FluxBulkExecutor, directory: Path, count: int, submitted: int) -> None:
    """Submit tasks that wait for a gate; wait until so many of them run at the same time."""
    directory.mkdir()
    for number in range(submitted):
        executor.submit(apps.arrive_and_wait, {}, str(directory / str(number)), str(directory) + ".gate")
    helpers.wait_until(lambda: len(list(directory.iterdir())) >= count, BOUND, f"{count} tasks run at once")


@pytest.mark.parametrize("held", [1, CORES - 1])
def test_tasks_run_beside_a_job_of_others(
    new_executor: NewExecutor, uri: str, held: int, tmp_path: Path
) -> None:
    job = hold(uri, held)
    with new_executor(uri) as executor:
        at_once(executor, tmp_path / "some", CORES - held, 3 * CORES)
        flux(uri, "cancel", job)
        # What became free is used as well.
        here = tmp_path / "some"
        helpers.wait_until(lambda: len(list(here.iterdir())) >= CORES, BOUND, "all cores are used")
        (tmp_path / "some.gate").touch()


def test_idle_workers_leave_their_cores_to_a_job_that_waits(
    new_executor: NewExecutor, uri: str, tmp_path: Path
) -> None:
    with new_executor(uri, worker_idle_time=None) as executor:
        at_once(executor, tmp_path / "all", CORES, CORES)
        job = flux(uri, "submit", f"-n{CORES}", "true")
        (tmp_path / "all.gate").touch()
        flux(uri, "job", "wait-event", "-t", str(BOUND), job, "clean")
        assert executor.submit(apps.double, {}, 1).result(BOUND) == 2


def test_a_job_of_others_that_starts_while_the_executor_is_idle(
    new_executor: NewExecutor, uri: str, tmp_path: Path
) -> None:
    with new_executor(uri, worker_idle_time=0.1) as executor:
        assert executor.submit(apps.double, {}, 1).result(BOUND) == 2
        hold(uri, CORES - 1)
        assert executor.submit(apps.double, {}, 2).result(BOUND) == 4
        futures = [executor.submit(apps.double, {}, number) for number in range(200)]
        assert [future.result(BOUND) for future in futures] == [2 * number for number in range(200)]


@pytest.mark.parametrize("idle_time", [0.1, 60.0], ids=["no worker is left", "a worker is left"])
def test_a_drained_node_is_left_out_and_used_when_it_is_back(
    new_executor: NewExecutor, uri: str, tmp_path: Path, idle_time: float
) -> None:
    with new_executor(uri, worker_idle_time=idle_time) as executor:
        assert executor.submit(apps.double, {}, 1).result(BOUND) == 2
        flux(uri, "resource", "drain", "1", "it is broken")
        at_once(executor, tmp_path / "some", CORES // BROKERS, 3 * CORES)
        flux(uri, "resource", "undrain", "1")
        here = tmp_path / "some"
        helpers.wait_until(lambda: len(list(here.iterdir())) >= CORES, BOUND, "the node is used again")
        (tmp_path / "some.gate").touch()


def test_two_executors_share_an_instance(new_executor: NewExecutor, uri: str, tmp_path: Path) -> None:
    with new_executor(uri, label="first") as first, new_executor(uri, label="second") as second:
        at_once(first, tmp_path / "first", 2, 2)
        at_once(second, tmp_path / "second", CORES - 2, 2 * CORES)
        (tmp_path / "first.gate").touch()
        here = tmp_path / "second"
        helpers.wait_until(lambda: len(list(here.iterdir())) >= CORES, BOUND, "the rest is used")
        (tmp_path / "second.gate").touch()


@pytest.mark.parametrize("specification", [{}, {"num_tasks": CORES}, {"cores_per_task": CORES // BROKERS}])
def test_a_task_that_cannot_run_says_why(
    new_executor: NewExecutor,
    uri: str,
    specification: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = hold(uri, CORES)
    with new_executor(uri) as executor, caplog.at_level(logging.WARNING, "parsl_flux_bulk"):
        future = executor.submit(apps.double, specification, 1)
        helpers.wait_until(lambda: "other programs hold" in caplog.text, BOUND, "the log says why it waits")
        assert f"hold {CORES} cores" in str(executor.story(future)[-1])
        flux(uri, "cancel", job)
        assert future.result(BOUND) == 2


def submit_to_a_stopped_queue(uri: str, executor: FluxBulkExecutor) -> tuple[Future[int], list[str]]:
    flux(uri, "queue", "stop", "--message=a rack is moved")
    return executor.submit(apps.double, {}, 1), ["queue", "start"]


def submit_and_hold(uri: str, executor: FluxBulkExecutor) -> tuple[Future[int], list[str]]:
    other = hold(uri, CORES)
    future = executor.submit(apps.double, {"num_tasks": 1}, 1)
    job = helpers.wait_until(
        lambda: flux(uri, "jobs", "--filter=pending", "-no", "{id}"), BOUND, "the task's job waits"
    )
    flux(uri, "job", "urgency", job, "hold")
    flux(uri, "cancel", other)
    return future, ["job", "urgency", job, "default"]


@pytest.mark.parametrize(
    ("submit", "words"),
    [
        (submit_to_a_stopped_queue, "its job waits in the instance: scheduling is stopped: a rack is moved"),
        (submit_and_hold, "its job waits in the instance: held (urgency 0)"),
    ],
    ids=["stopped", "held"],
)
def test_a_job_that_does_not_start_although_there_is_room_says_why(
    new_executor: NewExecutor,
    uri: str,
    submit: Callable[[str, FluxBulkExecutor], tuple[Future[int], list[str]]],
    words: str,
) -> None:
    with new_executor(uri) as executor:
        future, allow = submit(uri, executor)
        helpers.wait_until(lambda: words in str(executor.story(future)[-1]), BOUND, "the story says why")
        flux(uri, *allow)
        assert future.result(BOUND) == 2
