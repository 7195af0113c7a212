"""Fixtures of all suites: leak checks, a timeout, the ``flux`` and ``slurm`` markers, executors.

* A test that leaves a thread or a child process behind fails, with the thread's stack or the process's
  command line. ``@pytest.mark.may_leak(reason)`` exempts a test.
* A test that leaves jobs in a Flux instance, or tasks in an executor, that other tests use fails, with
  their names. They are canceled first, so that they keep no cores from the next test.
* A test that takes more than 180 s fails; ``@pytest.mark.timeout(seconds)`` sets another limit,
  and ``--timeout`` that of all others.
* ``@pytest.mark.flux`` needs Flux, and ``@pytest.mark.slurm`` Slurm's daemons and root. Where they are
  missing the test is skipped, and the head of the report says so.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import helpers
import hypothesis
import pytest
from slurm_cluster import slurm_missing

from parsl_flux_bulk.protocol import variables

if TYPE_CHECKING:
    from parsl_flux_bulk import FluxBulkExecutor

DEFAULT_TIMEOUT = 180.0
"""Seconds a test may take."""

LEAK_BOUND = 60.0
"""Seconds that threads and processes have to end after their test."""

LONGEST = (
    "test_examples",
    "test_slurm",
    "test_block_scaling",
    "test_block_ends",
    "test_blocks",
    "test_block_losses",
    "test_executor_lifecycle",
    "test_lifecycle",
    "test_packed_jobs",
    "test_executor_others",
    "test_flux_provider",
    "test_storm",
    "test_scheduler_chaos",
)
"""The modules that take a minute or so. Several processes of pytest begin with them, so that none is left
over at the end; see tox.ini."""

JOB_BOUND = 60.0
"""Seconds that jobs have to end after their test. Flux kills a job that ignores a cancel after 5 s."""

PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flux: needs the flux command and its Python bindings")
    config.addinivalue_line("markers", "may_leak(reason): exempt from the leak check")
    # The time of an example says nothing on a machine that is busy; tests have timeouts.
    # The same examples in every run, so that a run that fails fails again; "search" looks for new ones.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "suite", deadline=None, suppress_health_check=slow, derandomize=True, database=None
    )
    hypothesis.settings.register_profile("search", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
    # With SHLVL unset, every bash that Flux starts reads ~/.bashrc (bash(1), INVOCATION). Tests kill many of
    # these; pyenv, for one, then leaves a lock behind for which each later bash waits a minute.
    os.environ.setdefault("SHLVL", "1")
    # Orphans of a test become children of this process, so that the leak check sees them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # nohup, and a shell's &, start programs with signals ignored, which the programs under test would
    # inherit. A handler that does nothing ignores a signal too, and exec() resets it.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_report_header() -> list[str]:
    return [
        f"{name}: " + (f"its tests are SKIPPED: {missing}" if missing else "found, its tests run")
        for name, missing in (("flux", helpers.flux_missing()), ("slurm", slurm_missing()))
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # of pytest-xdist
        place = {name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(item.config.getoption("timeout") or DEFAULT_TIMEOUT))
        if item.get_closest_marker("flux") is not None and helpers.flux_missing():
            item.add_marker(pytest.mark.skip(reason=f"no Flux here: {helpers.flux_missing()}"))
        if item.get_closest_marker("slurm") is not None and slurm_missing():
            item.add_marker(pytest.mark.skip(reason=f"no Slurm here: {slurm_missing()}"))


def pytest_collection_finish() -> None:
    # Tests look for garbage again and again; without this, each time among all tests and imported modules.
    gc.collect()
    gc.freeze()


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


# Set up after the leak check, and so torn down before it.
@pytest.fixture(autouse=True)
def job_check(leak_check: None) -> Iterator[None]:
    """Fail a test that leaves tasks or jobs behind where other tests run theirs."""
    with _no_jobs_left("test"):
        yield


@pytest.fixture(scope="module", autouse=True)
def module_job_check() -> Iterator[None]:
    """Fail a module whose fixtures leave jobs behind."""
    with _no_jobs_left("module"):
        yield


@contextmanager
def _no_jobs_left(scope: str) -> Iterator[None]:
    before = {uri: helpers.active_job_ids(uri) for uri in helpers.RUNNING_INSTANCES}
    yield
    left = [note for executor in SHARED_EXECUTORS for note in executor.cancel_outstanding()]
    # The worker jobs of an executor that is still in use remain.
    workers = {executor.label for executor in SHARED_EXECUTORS}
    for uri in helpers.RUNNING_INSTANCES:
        left += helpers.cancel_jobs(uri, before.get(uri, set()), workers, JOB_BOUND)
    if left:
        pytest.fail(f"left behind by this {scope}, and canceled: {'; '.join(left)}", pytrace=False)


# -- executors --------------------------------------------------------------------------------------

START_BOUND = 60.0
"""Seconds that an executor may take to start."""

INSTANCES = ["local", pytest.param("flux", marks=pytest.mark.flux)]
MODES = [
    pytest.param("local workers"),
    pytest.param("local jobs"),
    pytest.param("flux workers", marks=pytest.mark.flux),
    pytest.param("flux jobs", marks=pytest.mark.flux),
]


class SharedExecutor:
    """A running executor, and the futures of its tasks with the names of their functions."""

    def __init__(self, executor: FluxBulkExecutor) -> None:
        self.label = executor.label
        self._functions: weakref.WeakKeyDictionary[Future[Any], str] = weakref.WeakKeyDictionary()
        submit = executor.submit

        def noting(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
            future = submit(function, *args, **kwargs)
            self._functions[future] = getattr(function, "__qualname__", repr(function))
            return future

        executor.submit = noting  # type: ignore[method-assign]

    def cancel_outstanding(self) -> list[str]:
        """Cancel tasks that do not end by themselves; return what each of them was."""
        deadline = time.monotonic() + LEAK_BOUND
        while (left := self._outstanding()) and time.monotonic() < deadline:
            time.sleep(0.005)
        for future in left:
            future.cancel()
        names = [f"{self.label}: task {self._functions[future]}" for future in left]
        self._functions.clear()
        return names

    def _outstanding(self) -> list[Future[Any]]:
        return [future for future in self._functions if not future.done()]


SHARED_EXECUTORS: set[SharedExecutor] = set()
"""Executors that `new_executor` has started and that run now."""


# An embedded instance pins its jobs to cores that it claims. These let each one claim all, whatever else of
# this user runs on this machine: other processes of the same run of pytest, and instances that live longer.


def _own_core_claims(factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variables.CLAIMS, tempfile.mkdtemp(prefix="claims-", dir=factory.getbasetemp()))
        yield


@pytest.fixture(scope="session", autouse=True)
def core_claims_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from _own_core_claims(tmp_path_factory)


@pytest.fixture(scope="module", autouse=True)
def core_claims_of_this_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from _own_core_claims(tmp_path_factory)


@pytest.fixture(scope="session")
def flux_uri() -> Iterator[str]:
    """The URI of a Flux instance of one broker, for the whole session."""
    with helpers.flux_instance() as uri:
        yield uri


@pytest.fixture(scope="module", params=INSTANCES)
def where(request: pytest.FixtureRequest) -> str:
    """The `instance` argument of an executor: each kind in turn."""
    return _spec(request, request.param)


@pytest.fixture(scope="module")
def new_executor(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[FluxBulkExecutor]]:
    """A context manager that starts an executor, and shuts it down at the end of the block."""

    @contextmanager
    def new(instance: str, **options: Any) -> Iterator[FluxBulkExecutor]:
        from parsl_flux_bulk import FluxBulkExecutor

        executor = FluxBulkExecutor(instance=instance, **options)
        executor.run_dir = str(tmp_path_factory.mktemp("run"))
        before = set(helpers.own_processes())
        shared = SharedExecutor(executor)
        executor.start()
        try:
            # Its processes, among them the cancel guard of an attached executor, have started by then.
            helpers.wait_until(executor.status_report, START_BOUND, "the executor has started")
            ours = set(helpers.own_processes()) - before
            helpers.LONG_LIVED.update(ours)
            SHARED_EXECUTORS.add(shared)
            yield executor
        finally:
            SHARED_EXECUTORS.discard(shared)
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
