"""What the integration tests share: a Flux instance, and executors on every instance in both modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import helpers
import pytest

from parsl_flux_bulk import FluxBulkExecutor

START_BOUND = 60.0
"""Seconds that an executor may take to be up."""

INSTANCES = ["local", pytest.param("flux", marks=pytest.mark.flux)]
MODES = [
    pytest.param("local workers"),
    pytest.param("local jobs"),
    pytest.param("flux workers", marks=pytest.mark.flux),
    pytest.param("flux jobs", marks=pytest.mark.flux),
]


@pytest.fixture(scope="session")
def flux_uri() -> Iterator[str]:
    """The URI of a Flux instance of one broker, for the whole session."""
    with helpers.flux_instance() as uri:
        yield uri


@pytest.fixture(scope="module", params=INSTANCES)
def where(request: pytest.FixtureRequest) -> str:
    """What to give to an executor as its instance: each kind in turn."""
    return _spec(request, request.param)


@pytest.fixture(scope="module")
def new_executor(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[FluxBulkExecutor]]:
    """Makes an executor that is up for the time of a ``with`` block."""

    @contextmanager
    def new(instance: str, **options: Any) -> Iterator[FluxBulkExecutor]:
        executor = FluxBulkExecutor(instance=instance, **options)
        executor.run_dir = str(tmp_path_factory.mktemp("run"))
        before = set(helpers.own_processes())
        executor.start()
        try:
            # Its processes, among them the guard of an attached executor, are there from now on.
            helpers.wait_until(executor.status_report, START_BOUND, "the executor is up")
            ours = set(helpers.own_processes()) - before
            helpers.LONG_LIVED.update(ours)
            yield executor
        finally:
            executor.shutdown()
        helpers.LONG_LIVED.difference_update(ours)
        helpers.wait_gone(ours)

    return new


@pytest.fixture(scope="module", params=MODES)
def executor(
    request: pytest.FixtureRequest, new_executor: Callable[..., AbstractContextManager[FluxBulkExecutor]]
) -> Iterator[FluxBulkExecutor]:
    """An executor, for a whole module: on each instance, with warm workers and with a job a task."""
    instance, mode = request.param.split()
    with new_executor(
        _spec(request, instance), tasks_per_job=1 if mode == "jobs" else None, worker_idle_time=30
    ) as executor:
        yield executor


def _spec(request: pytest.FixtureRequest, instance: str) -> str:
    return "local" if instance == "local" else request.getfixturevalue("flux_uri")
