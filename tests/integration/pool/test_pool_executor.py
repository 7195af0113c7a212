"""FluxPoolExecutor: what concurrent.futures promises, embedded and on Flux."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import operator
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PROJECT, run_script, wait_event, wait_until
from pool_calls import (
    captured,
    change_state,
    change_state_of_a_task,
    fail_to_initialize,
    invert,
    square,
    state_of_process,
    wait_for_file,
)

import parsl_flux_bulk
from parsl_flux_bulk import FluxBulkExecutor, FluxPoolExecutor
from parsl_flux_bulk.errors import ExecutorClosed, InitializerFailed, InstanceUnavailable, TaskCrashed
from parsl_flux_bulk.executor.serialize_calls import CallNotSerializable

BOUND = 60.0


@pytest.fixture
def new_pool(where: str, tmp_path: Path) -> Iterator[Callable[..., FluxPoolExecutor]]:
    pools: list[FluxPoolExecutor] = []

    def new(**options: Any) -> FluxPoolExecutor:
        pools.append(FluxPoolExecutor(instance=where, working_dir=str(tmp_path), **options))
        return pools[-1]

    yield new
    for pool in pools:
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def pool(new_pool: Callable[..., FluxPoolExecutor]) -> FluxPoolExecutor:
    return new_pool()


def test_submit(pool: FluxPoolExecutor) -> None:
    assert pool.submit(square, 3).result(BOUND) == 9
    # Names that methods of this package have for their own parameters.
    named = {"self": 1, "fn": 2, "func": 3, "resource_specification": 4}
    assert pool.submit(captured, 0, **named).result(BOUND) == ((0,), named)
    with pytest.raises(ZeroDivisionError):
        pool.submit(invert, 0).result(BOUND)
    with pytest.raises(CallNotSerializable, match="argument 1, of type lock"):
        pool.submit(captured, threading.Lock())


def test_a_dead_worker_ends_only_its_call(pool: FluxPoolExecutor) -> None:
    crash = pool.submit(os.abort)
    assert pool.submit(square, 3).result(BOUND) == 9
    with pytest.raises(TaskCrashed, match="SIGABRT"):
        crash.result(BOUND)


def test_leaving_the_block_waits_for_all_tasks(pool: FluxPoolExecutor, tmp_path: Path) -> None:
    with pool:
        futures = [pool.submit(square, x) for x in range(100)]
        threading.Timer(0.1, (tmp_path / "go").touch).start()
        futures.append(pool.submit(wait_for_file, str(tmp_path / "go")))
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(square, 1)
    with pytest.raises(ExecutorClosed):
        pool.map(square, [1])
    pool.shutdown()
    FluxPoolExecutor().shutdown()


def test_shutdown_without_waiting(pool: FluxPoolExecutor, tmp_path: Path) -> None:
    future = pool.submit(wait_for_file, str(tmp_path / "go"))
    results = pool.map(square, range(500))
    pool.shutdown(wait=False)
    assert not future.done()
    (tmp_path / "go").touch()
    assert future.result(BOUND) and list(results) == [x * x for x in range(500)]


def test_shutdown_that_cancels(new_pool: Callable[..., FluxPoolExecutor], tmp_path: Path) -> None:
    pool = new_pool(max_workers=1)
    first = pool.submit(wait_for_file, str(tmp_path / "go"))
    others = [pool.submit(wait_for_file, str(tmp_path / "go")) for _ in range(20)]
    wait_until(lambda: (report := pool.status_report()) and report.tasks.running, BOUND, "the first runs")
    others[-1].add_done_callback(lambda _: (tmp_path / "go").touch())
    pool.shutdown(cancel_futures=True)
    assert first.result(0) == str(tmp_path / "go")
    assert all(future.cancelled() for future in others)


def test_garbage_ends_its_tasks_first(where: str, tmp_path: Path) -> None:
    pool = FluxPoolExecutor(instance=where, working_dir=str(tmp_path))
    results = pool.map(square, range(100))
    future = pool.submit(square, 5)
    del pool
    gc.collect()
    assert future.result(BOUND) == 25 and list(results) == [x * x for x in range(100)]


def test_the_exit_of_the_interpreter_waits(where: str, tmp_path: Path) -> None:
    source = f"""
import time
from parsl_flux_bulk import FluxPoolExecutor

pool = FluxPoolExecutor(instance={where!r})
pool.submit(time.sleep, 0.2).add_done_callback(lambda future: print("ended", future.result()))
"""
    done = run_script(source, tmp_path)
    assert (done.stdout, done.stderr) == ("ended None\n", "")
    assert not (tmp_path / "runinfo").exists()


# -- parameters -----------------------------------------------------------------------------------------


def test_the_initializer_runs_once_in_each_worker(
    new_pool: Callable[..., FluxPoolExecutor], tmp_path: Path
) -> None:
    pool = new_pool(max_workers=1, initializer=change_state, initargs=(str(tmp_path),))
    seen = []
    for _ in range(3):
        seen.append(pool.submit(state_of_process).result(BOUND))
        pool.submit(change_state_of_a_task).result(BOUND)
    assert set(seen) == {("yes", "", str(tmp_path), seen[0][3])}


def test_a_failing_initializer_breaks_the_pool(new_pool: Callable[..., FluxPoolExecutor]) -> None:
    pool = new_pool(initializer=fail_to_initialize)
    futures = [pool.submit(square, x) for x in range(20)]
    for future in futures:
        with pytest.raises(concurrent.futures.BrokenExecutor, match="LookupError: no data") as caught:
            future.result(BOUND)
        assert isinstance(caught.value, InitializerFailed)
    assert isinstance(futures[0].exception().__cause__, LookupError)  # type: ignore[union-attr]
    with pytest.raises(InitializerFailed):
        wait_until(lambda: pool.submit(square, 1).done() and False, BOUND, "submit raises")


def test_an_instance_that_cannot_start_breaks_the_pool() -> None:
    with pytest.raises(concurrent.futures.BrokenExecutor) as caught:
        FluxPoolExecutor(instance="local:///nowhere/at/all").submit(square, 1)
    assert isinstance(caught.value, InstanceUnavailable)


def test_workers_are_bounded_and_replaced(new_pool: Callable[..., FluxPoolExecutor]) -> None:
    pool = new_pool(max_workers=1)
    assert len(set(pool.map(operator.itemgetter(3), [state_of_process() for _ in range(9)]))) == 1
    assert len({future.result(BOUND) for future in [pool.submit(os.getpid) for _ in range(50)]}) == 1
    pool = new_pool(max_tasks_per_child=1)
    assert len({future.result(BOUND) for future in [pool.submit(os.getpid) for _ in range(5)]}) == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_tasks_per_child": 0}, ValueError, "must be at least 1"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"mp_context": None}, TypeError, "mp_context"),
    ],
)
def test_bad_arguments(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FluxPoolExecutor(**options)


def test_other_resources(pool: FluxPoolExecutor) -> None:
    alone = pool.with_resources(num_tasks=1)
    jobs = {future.result(BOUND) for future in [alone.submit(os.getpid) for _ in range(3)]}
    assert len(jobs) == 3
    assert list(alone.map(square, range(3))) == [0, 1, 4]
    with alone:
        future = alone.submit(square, 2)
    assert future.done() and pool.submit(square, 3).result(BOUND) == 9
    with pytest.raises(Exception, match="num_taks"):
        pool.with_resources(num_taks=2)


# -- map ----------------------------------------------------------------------------------------------


def test_map_keeps_the_order(pool: FluxPoolExecutor) -> None:
    assert list(pool.map(square, range(20_000))) == [x * x for x in range(20_000)]
    assert list(pool.map(pow, [2, 3, 4], itertools.count())) == [1, 3, 16]
    assert list(pool.map(square, range(10), chunksize=3)) == [x * x for x in range(10)]
    assert list(pool.map(square, [])) == []


def test_short_items_share_tasks_and_long_ones_do_not(pool: FluxPoolExecutor) -> None:
    assert list(pool.map(square, range(20_000)))
    done = pool.status_report().tasks.done  # type: ignore[union-attr]
    assert done < 20_000
    assert len(list(pool.map(time.sleep, [0.03] * 8))) == 8
    assert pool.status_report().tasks.done == done + 8  # type: ignore[union-attr]


def test_map_ends_with_the_first_exception(pool: FluxPoolExecutor) -> None:
    for chunksize in (1, 5):
        results = pool.map(invert, [1, 2, 0, 4], chunksize=chunksize)
        assert [next(results), next(results)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)
    with pytest.raises(CallNotSerializable):
        next(pool.map(captured, [threading.Lock()]))


def test_map_runs_all_items_even_if_nobody_looks(pool: FluxPoolExecutor, tmp_path: Path) -> None:
    pool.map(os.mkdir, [str(tmp_path / f"made-{n}") for n in range(300)])
    pool.shutdown()
    assert len(list(tmp_path.glob("made-*"))) == 300


def test_a_buffer_bounds_what_is_taken(pool: FluxPoolExecutor) -> None:
    numbers = itertools.count()
    results = pool.map(square, numbers, buffersize=100)
    assert next(numbers) == 100
    assert list(itertools.islice(results, 5_000)) == [x * x for x in [*range(100), *range(101, 5_001)]]
    assert next(numbers) <= 5_000 + 102
    results.close()  # type: ignore[attr-defined]
    for wrong in ({"buffersize": 0}, {"chunksize": 0}):
        with pytest.raises(ValueError, match="must be >= 1"):
            pool.map(square, [1], **wrong)


MILLION = """
import os, time
from parsl_flux_bulk import FluxPoolExecutor

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

with FluxPoolExecutor(instance={where!r}) as pool:
    items = iter(range(1_000_000))
    results = pool.map(abs, items, buffersize=20_000)
    for n in range(200_000):
        assert next(results) == n
    quiet = False
    while not quiet:
        done, used = pool.status_report().tasks.done, time.process_time()
        time.sleep(1.0)
        quiet = pool.status_report().tasks.done == done and time.process_time() - used < 0.1
    untaken = next(items)
    print(untaken <= 220_000)
    size = resident()
    assert sum(results) == sum(range(200_000, 1_000_000)) - untaken
    print((resident() - size) / 2**20 < 10 or resident() - size)
"""


def test_map_of_a_million_items_in_flat_memory(where: str, tmp_path: Path) -> None:
    done = run_script(MILLION.format(where=where), tmp_path, 110)
    # While the results of a full buffer are not taken, nothing more is submitted, and nothing polls.
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_map_times_out(pool: FluxPoolExecutor, tmp_path: Path) -> None:
    results = pool.map(wait_for_file, [str(tmp_path / "go")], timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    (tmp_path / "go").touch()


# -- other libraries ------------------------------------------------------------------------------------


def test_asyncio(pool: FluxPoolExecutor) -> None:
    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        in_executor = loop.run_in_executor(pool, square, 6)
        wrapped = asyncio.wrap_future(pool.submit(square, 7))
        return await in_executor, await wrapped

    assert asyncio.run(main()) == (36, 49)


def test_wait_and_as_completed(pool: FluxPoolExecutor) -> None:
    futures = {pool.submit(square, x) for x in range(10)}
    assert {future.result() for future in concurrent.futures.as_completed(futures, BOUND)} == {
        x * x for x in range(10)
    }
    assert concurrent.futures.wait(futures, BOUND).not_done == set()
    called = threading.Event()
    pool.submit(square, 1).add_done_callback(lambda _: called.set())
    wait_event(called)


# -- the other face, and the documentation --------------------------------------------------------------


def test_the_parsl_executor_starts_in_a_with_statement(where: str, tmp_path: Path) -> None:
    with FluxBulkExecutor(instance=where, working_dir=str(tmp_path)) as executor:
        assert executor.submit(square, {}, 3).result(BOUND) == 9
        for arguments in ((), (3,)):
            with pytest.raises(TypeError, match="FluxPoolExecutor"):
                executor.submit(square, *arguments)  # type: ignore[arg-type]


def test_a_failing_initializer_breaks_the_parsl_executor(where: str, tmp_path: Path) -> None:
    with FluxBulkExecutor(
        instance=where, working_dir=str(tmp_path), initializer=fail_to_initialize
    ) as executor:
        with pytest.raises(InitializerFailed):
            executor.submit(square, {}, 3).result(BOUND)


def test_the_documentation(where: str, tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    text = (PROJECT / "docs" / "without-parsl.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    source = "\n".join(examples).replace("FluxPoolExecutor(", f"FluxPoolExecutor(instance={where!r}, ")
    source = source.replace('config("flux", ', f'config("flux", instance={where!r}, ')
    done = run_script(source, tmp_path)
    assert (done.stdout, done.stderr) == ("49\n333328333350000\n[1, 2, 4, 8, 16]\n[1, 2, 4, 8, 16]\n", "")


def test_errors_travel() -> None:
    error = pickle.loads(pickle.dumps(InitializerFailed("why")))
    assert isinstance(error, InitializerFailed) and "FluxPoolExecutor" in parsl_flux_bulk.__all__
