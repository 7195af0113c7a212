"""What every suite gets: a leak check, a time-out, the ``flux`` and ``slurm`` markers, executors to test.

* A test that leaves a thread or a child process behind fails, with the thread's stack or the
  process's command line. ``@pytest.mark.may_leak(reason)`` exempts one. So does a module that leaves
  jobs in the session's Flux instance.
* A test that takes more than 120 s fails; ``@pytest.mark.timeout(seconds)`` says otherwise.
* ``@pytest.mark.flux`` needs a real Flux, and ``@pytest.mark.slurm`` Slurm's daemons and root. Where
  they are missing the test is skipped, and the head of the report says so once more.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import helpers
import pytest
from slurm_cluster import slurm_missing

if TYPE_CHECKING:
    from parsl_flux_bulk import FluxBulkExecutor

DEFAULT_TIMEOUT = 120.0
"""Seconds a test may take."""

LEAK_BOUND = 5.0
"""Seconds that threads and processes have to end after their test."""

JOB_BOUND = 15.0
"""Seconds that jobs have to end after their module; Flux kills those that do not heed a cancel after 5 s."""

PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flux: needs the flux command and its Python bindings")
    config.addinivalue_line("markers", "may_leak(reason): exempt from the leak check")
    # Without it every bash that Flux starts reads ~/.bashrc (bash(1), INVOCATION), and tests kill many of
    # them there: pyenv, for one, leaves a lock then, for which each of the following waits a minute.
    os.environ.setdefault("SHLVL", "1")
    # Orphans of a test come to this process, so that the leak check sees them too.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_report_header() -> list[str]:
    return [
        f"{name}: "
        + (f"tests against it are SKIPPED: {missing}" if missing else "here, tests against it run")
        for name, missing in (("flux", helpers.flux_missing()), ("slurm", slurm_missing()))
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(DEFAULT_TIMEOUT))
        if item.get_closest_marker("flux") is not None and helpers.flux_missing():
            item.add_marker(pytest.mark.skip(reason=f"no Flux here: {helpers.flux_missing()}"))
        if item.get_closest_marker("slurm") is not None and slurm_missing():
            item.add_marker(pytest.mark.skip(reason=f"no Slurm here: {slurm_missing()}"))


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a process behind."""
    threads, processes = set(helpers.own_threads()), set(helpers.own_processes())
    yield
    if request.node.get_closest_marker("may_leak") is not None:
        return

    def leaked() -> list[str]:
        left = [helpers.stack_of(t) for i, t in helpers.own_threads().items() if i not in threads]
        return left + [
            f"process {pid}: {command}"
            for pid, command in helpers.own_processes().items()
            if pid not in processes
        ]

    deadline = time.monotonic() + LEAK_BOUND
    while (left := leaked()) and time.monotonic() < deadline:
        time.sleep(0.005)
    if left:
        pytest.fail("left behind by this test:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def job_check() -> Iterator[None]:
    """Fail a module that leaves jobs in an instance that goes on: they would take cores from other tests."""
    yield
    for uri in helpers.RUNNING_INSTANCES:
        deadline = time.monotonic() + JOB_BOUND
        while (left := helpers.active_jobs(uri)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            helpers.flux(uri, "cancel", "--all")
            helpers.wait_until(lambda uri=uri: not helpers.active_jobs(uri), 2 * JOB_BOUND)
            pytest.fail(f"left behind by this module in {uri}: {left}", pytrace=False)


# -- executors --------------------------------------------------------------------------------------

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
        from parsl_flux_bulk import FluxBulkExecutor

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
