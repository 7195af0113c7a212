"""`max_pending_tasks`: a generator of apps waits for the tasks that it has made."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apps
import helpers
import parsl
import pytest
from parsl.config import Config
from parsl.data_provider.files import File

from parsl_flux_bulk import FluxBulkExecutor, FluxPoolExecutor
from parsl_flux_bulk.errors import ExecutorClosed

BOUND = 60.0
LIMIT = 4

wait_for_file = parsl.python_app(apps.wait_for_file)
double = parsl.python_app(apps.double)
hold = parsl.python_app(apps.wait_for_file, executors=["held"])


def second(_: Any, value: Any) -> Any:
    return value


after = parsl.python_app(second)


class Caller:
    """A thread that makes one call after another, and the futures it has got."""

    def __init__(self, call: Any, count: int) -> None:
        self.futures: list[Future[Any]] = []
        self.error: BaseException | None = None

        def run() -> None:
            try:
                for _ in range(count):
                    self.futures.append(call())
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def stands_at(self, count: int) -> bool:
        """Tell whether so many calls have returned, and the next one waits."""
        helpers.wait_until(lambda: len(self.futures) >= count, BOUND, f"{count} calls")
        self._thread.join(0.3)
        return self._thread.is_alive() and len(self.futures) == count

    def join(self) -> None:
        self._thread.join(BOUND)
        assert not self._thread.is_alive()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def loaded(where: str, tmp_path: Path, gate: Path) -> Iterator[FluxBulkExecutor]:
    executor = FluxBulkExecutor(label="held", instance=where, max_pending_tasks=LIMIT)
    config = Config(
        executors=[executor], run_dir=str(tmp_path), initialize_logging=False, strategy="none", retries=1
    )
    with parsl.load(config):
        yield executor
        gate.touch()
    parsl.clear()


def test_apps_wait_in_the_thread_that_calls_them(loaded: FluxBulkExecutor, gate: Path) -> None:
    caller = Caller(lambda: wait_for_file(str(gate)), LIMIT + 1)
    assert caller.stands_at(LIMIT)
    gate.touch()
    caller.join()
    assert [future.result(BOUND) for future in caller.futures] == [True] * (LIMIT + 1)


def test_a_generator_of_apps_has_no_more_tasks_than_that(loaded: FluxBulkExecutor) -> None:
    queue, limit = loaded.queue, loaded.pending_limit
    assert queue is not None and limit is not None
    most, futures = 0, []
    for number in range(300):
        futures.append(double(number))
        most = max(most, queue.outstanding, limit.pending)
    assert [future.result(BOUND) for future in futures] == [2 * number for number in range(300)]
    assert most <= LIMIT
    helpers.wait_until(lambda: limit.pending == 0, BOUND, "nothing counts any more")


def test_apps_that_wait_for_others_do_not_count_until_these_have_ended(
    loaded: FluxBulkExecutor, gate: Path
) -> None:
    limit = loaded.pending_limit
    assert limit is not None
    ended: Future[int] = Future()  # ended by the same thread, which must not wait for it
    first = wait_for_file(str(gate))
    futures = [after([first, ended][number % 2], number) for number in range(3 * LIMIT)]
    assert limit.pending == 1
    gate.touch()
    ended.set_result(0)
    assert [future.result(BOUND) for future in futures] == list(range(3 * LIMIT))
    helpers.wait_until(lambda: limit.pending == 0, BOUND, "nothing counts any more")
    failed = after(parsl.python_app(apps.fail)("on purpose"), 1)
    assert failed.exception(BOUND) is not None
    helpers.wait_until(lambda: limit.pending == 0, BOUND, "nothing counts any more")


def test_callbacks_call_apps_without_waiting(loaded: FluxBulkExecutor, gate: Path) -> None:
    first = wait_for_file(f"{gate}-first")
    futures = [wait_for_file(str(gate)) for _ in range(LIMIT - 1)]
    inner: Future[list[Any]] = Future()
    first.add_done_callback(lambda _: inner.set_result([wait_for_file(str(gate)) for _ in range(2 * LIMIT)]))
    Path(f"{gate}-first").touch()
    more = inner.result(BOUND)
    gate.touch()
    assert all(future.result(BOUND) for future in [*futures, *more])


def test_an_app_that_cannot_be_submitted_is_not_counted(loaded: FluxBulkExecutor) -> None:
    limit = loaded.pending_limit
    assert limit is not None
    for _ in range(2 * LIMIT):
        error = double(1, parsl_resource_specification={"no such key": 1}).exception(BOUND)
        assert "no such key" in str(error)
    with pytest.raises(ValueError, match="cannot stage file"):
        double(File("nowhere://host/file"))
    helpers.wait_until(lambda: limit.pending == 0, BOUND, "nothing counts any more")


def test_executors_of_one_configuration_wait_each_for_its_own_tasks(tmp_path: Path, gate: Path) -> None:
    held = FluxBulkExecutor(label="held", instance="local", max_pending_tasks=LIMIT)
    free = FluxBulkExecutor(label="free", instance="local")
    config = Config(executors=[held, free], run_dir=str(tmp_path), initialize_logging=False, strategy="none")
    with parsl.load(config):
        caller = Caller(lambda: hold(str(gate)), LIMIT + 1)
        assert caller.stands_at(LIMIT)
        elsewhere = parsl.python_app(apps.double, executors=["free"])
        assert [elsewhere(number).result(BOUND) for number in range(2 * LIMIT)] == [0, 2, 4, 6, 8, 10, 12, 14]
        gate.touch()
        caller.join()
    parsl.clear()


# -- without Parsl -----------------------------------------------------------------------------------


@pytest.fixture
def pool(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FluxPoolExecutor]:
    monkeypatch.chdir(tmp_path)
    with FluxPoolExecutor(instance=where, max_pending_tasks=LIMIT) as pool:
        yield pool


def test_submit_waits(pool: FluxPoolExecutor, gate: Path) -> None:
    caller = Caller(lambda: pool.submit(apps.wait_for_file, str(gate)), LIMIT + 1)
    assert caller.stands_at(LIMIT)
    gate.touch()
    caller.join()
    assert [future.result(BOUND) for future in caller.futures] == [True] * (LIMIT + 1)


def test_map_has_a_bound_of_its_own(pool: FluxPoolExecutor) -> None:
    assert list(pool.map(apps.double, range(200), chunksize=1)) == [2 * number for number in range(200)]


def test_joblib_has_a_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joblib = pytest.importorskip("joblib")
    importlib.import_module("parsl_flux_bulk.joblib")
    monkeypatch.chdir(tmp_path)
    with FluxPoolExecutor(instance="local", max_pending_tasks=1) as pool:
        with joblib.parallel_config("flux", executor=pool, n_jobs=2):
            got = joblib.Parallel(batch_size=1)(joblib.delayed(apps.double)(n) for n in range(50))
    assert got == [2 * number for number in range(50)]


def test_submit_now_does_not_wait(pool: FluxPoolExecutor, gate: Path) -> None:
    futures = [pool.submit_now(apps.wait_for_file, str(gate)) for _ in range(LIMIT + 2)]
    gate.touch()
    assert all(future.result(BOUND) for future in futures)


def test_shutdown_lets_a_waiting_call_go_on(where: str, new_executor: Any, gate: Path) -> None:
    with new_executor(where, max_pending_tasks=LIMIT) as executor:
        caller = Caller(lambda: executor.submit(apps.wait_for_file, {}, str(gate)), LIMIT + 1)
        assert caller.stands_at(LIMIT)
    caller.join()
    assert isinstance(caller.error, ExecutorClosed)


def test_a_bound_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="max_pending_tasks must be at least 1, or None, not 0"):
        FluxPoolExecutor(max_pending_tasks=0)
