"""Every future ends, however its task ended: with both kinds of job, on every instance."""

from __future__ import annotations

import glob
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apps
import parsl
import pytest
from helpers import LONG_LIVED, own_processes, wait_gone, wait_until
from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import NotSerializable, RemoteError, TaskCrashed
from parsl_flux_bulk.executor.serialize_calls import CallNotSerializable

BOUND = 60.0
MEGABYTE = 1_000_000

Run = Callable[..., "Future[Any]"]


@pytest.fixture(scope="module", params=["submit", "app"])
def run(request: pytest.FixtureRequest, executor: FluxBulkExecutor) -> Iterator[Run]:
    """Makes a call through the executor itself, and through Parsl."""
    if request.param == "submit":
        yield lambda function, *args, **kwargs: executor.submit(function, {}, *args, **kwargs)
        return
    made: dict[Any, Any] = {}
    before = set(own_processes())
    kernel = parsl.DataFlowKernel(
        Config(executors=[_Unowned(executor)], run_dir=executor.run_dir, initialize_logging=False)
    )
    ours = set(own_processes()) - before
    LONG_LIVED.update(ours)

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        app = made.setdefault(function, parsl.python_app(function, data_flow_kernel=kernel))
        return app(*args, **kwargs)

    call(apps.nothing).result(BOUND)  # so that Parsl's threads are there before the first test
    yield call
    kernel.cleanup()
    LONG_LIVED.difference_update(ours)
    wait_gone(ours)


class _Unowned(FluxBulkExecutor):
    """Lets Parsl use an executor that it neither starts nor ends."""

    def __init__(self, executor: FluxBulkExecutor) -> None:
        super().__init__(label="unowned")
        self._executor = executor

    def start(self) -> None:
        pass

    def submit(self, func: Any, resource_specification: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(func, resource_specification, *args, **kwargs)

    def shutdown(self) -> None:
        pass


def output_of(executor: FluxBulkExecutor) -> str:
    """The one directory below the run directory that has the output of jobs."""
    (directory,) = glob.glob(os.path.join(executor.run_dir, executor.label, "jobs-*"))
    return directory


def test_a_result(run: Run) -> None:
    assert run(apps.double, 21).result(BOUND) == 42
    assert run(apps.nothing).result(BOUND) is None
    assert run(apps.double, x="ab").result(BOUND) == "abab"


def test_an_exception_comes_with_its_remote_traceback(run: Run) -> None:
    error = run(apps.fail, "as planned").exception(BOUND)
    assert type(error) is apps.Planned and error.args == ("as planned",)
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert (last.name, last.filename) == ("fail", apps.__file__)
    assert last.line == "raise Planned(text)"


def test_an_exception_comes_with_its_cause(run: Run) -> None:
    error = run(apps.fail_with_cause, "the effect").exception(BOUND)
    assert type(error) is ValueError and error.args == ("the effect",)
    assert type(error.__cause__) is apps.Planned and error.__cause__.args == ("the cause",)
    assert [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)] == [
        "fail_with_cause",
        "fail",
    ]


def test_an_exception_that_cannot_be_read(run: Run) -> None:
    error = run(apps.fail_unreadably, "its text").exception(BOUND)
    assert isinstance(error, RemoteError)
    assert error.type_name == "apps.Unreadable"
    assert "its text" in str(error) and "in fail_unreadably" in error.traceback


def test_a_result_that_cannot_travel(run: Run) -> None:
    error = run(apps.unpicklable_result).exception(BOUND)
    assert isinstance(error, NotSerializable)
    assert "the result, of type builtins.generator, cannot be serialized" in str(error)


def test_an_argument_that_cannot_travel(run: Run) -> None:
    generator = (i for i in range(3))
    try:
        # Parsl's kernel puts into the future what submit raises.
        error = run(apps.double, generator).exception(BOUND)
    except CallNotSerializable as raised:
        error = raised
    assert isinstance(error, CallNotSerializable)
    assert "the call of double cannot be serialized: argument 1, of type generator" in str(error)


def crash_of(future: Future[Any], executor: FluxBulkExecutor) -> TaskCrashed:
    error = future.exception(BOUND)
    assert isinstance(error, TaskCrashed)
    assert error.host == socket.gethostname() and error.host in str(error)
    assert error.job and f"job {error.job}" in str(error)
    assert f"output in {output_of(executor)}" in str(error)
    return error


def test_exit_of_the_process(run: Run, executor: FluxBulkExecutor) -> None:
    error = crash_of(run(apps.exit_process, 3, "the last line"), executor)
    assert (error.exit_code, error.signal) == (3, None)
    assert "exit_process (task " in str(error) and "exit status 3" in str(error)
    assert error.stderr.splitlines()[-1] == "the last line"
    assert str(error).endswith("    the last line")


def test_exit_of_the_process_with_status_0(run: Run, executor: FluxBulkExecutor) -> None:
    error = crash_of(run(apps.exit_process, 0), executor)
    assert (error.exit_code, error.signal) == (0, None)
    assert "exit status 0" in str(error)


def test_sys_exit(run: Run) -> None:
    error = run(apps.sys_exit, 3).exception(BOUND)
    assert isinstance(error, TaskCrashed) and error.exit_code == 3
    assert "sys.exit(3)" in str(error)
    assert str(error).startswith("sys_exit (task ")
    assert error.job and error.job in str(error) and error.host and error.host in str(error)


def test_segmentation_fault(run: Run, executor: FluxBulkExecutor) -> None:
    error = crash_of(run(apps.segfault), executor)
    assert (error.exit_code, error.signal) == (None, signal.SIGSEGV)
    assert "killed by SIGSEGV" in str(error)
    assert "Segmentation fault" in error.stderr and "in segfault" in error.stderr


def test_sigkill(run: Run, executor: FluxBulkExecutor) -> None:
    error = crash_of(run(apps.kill_self), executor)
    assert (error.exit_code, error.signal) == (None, signal.SIGKILL)
    assert "killed by SIGKILL" in str(error)


def test_prints_are_kept(run: Run, executor: FluxBulkExecutor) -> None:
    out, err = f"out {threading.get_ident()} {id(run)}", f"err {threading.get_ident()} {id(run)}"
    assert run(apps.say, out, err).result(BOUND) is None

    def printed(suffix: str) -> str:
        return "".join(path.read_text() for path in Path(output_of(executor)).glob(f"*.{suffix}"))

    wait_until(lambda: out in printed("out").splitlines(), what="its output is in a file")
    wait_until(lambda: err in printed("err").splitlines(), what="its errors are in a file")


def test_50_megabytes_each_way(run: Run) -> None:
    back = run(apps.zeros, 50 * MEGABYTE)
    there = run(apps.size_of, bytes(50 * MEGABYTE))
    assert len(back.result(BOUND)) == 50 * MEGABYTE
    assert there.result(BOUND) == 50 * MEGABYTE


def test_one_bad_task_fails_alone(run: Run) -> None:
    bad = [run(apps.exit_process, 1), run(apps.fail, "x"), run(apps.segfault), run(apps.unpicklable_result)]
    good = [run(apps.double, n) for n in range(20)]
    assert [future.result(BOUND) for future in good] == [2 * n for n in range(20)]
    assert all(future.exception(BOUND) is not None for future in bad)
