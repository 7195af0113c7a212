"""Start, shutdown, exit and death of an executor: bounded in time, and nothing is left behind.

The leak check of every test looks for threads and processes; these tests look at the rest.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apps
import parsl
import pytest
from helpers import (
    active_jobs,
    descendants,
    in_a_fork,
    kill,
    run_script,
    script,
    wait_event,
    wait_gone,
    wait_until,
)

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import ExecutorClosed, InstanceUnavailable
from parsl_flux_bulk.executor.serialize_calls import CallNotSerializable
from parsl_flux_bulk.instances.local.client import LocalInstance
from parsl_flux_bulk.protocol.variables import PING

BOUND = 60.0
SHUTDOWN_BOUND = 60.0
"""Seconds that a shutdown may take on a busy machine; a few are the rule."""

END_BOUND = 60.0
"""Seconds in which everything must have ended that a killed script has started."""

TASK_JOB = {"num_tasks": 1}
"""Makes a task a job of its own."""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for temporary files, to be found empty again after the test."""
    # Short, for the paths of sockets.
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(directory)
        # Sooner or later: a shutdown in a callback goes on when the callback has returned.
        wait_until(lambda: not os.listdir(directory), SHUTDOWN_BOUND, "no file or socket is left")


@pytest.fixture
def unstarted(where: str, tmp_path: Path, scratch: Path) -> Iterator[FluxBulkExecutor]:
    executor = FluxBulkExecutor(instance=where)
    executor.run_dir = str(tmp_path)
    yield executor
    executor.shutdown()


@pytest.fixture
def started(unstarted: FluxBulkExecutor) -> FluxBulkExecutor:
    unstarted.start()
    return unstarted


def keep_busy(executor: FluxBulkExecutor, directory: Path) -> list[Future[Any]]:
    """Let a worker and a task job run for ever, with more of both waiting; return all futures."""
    marks = directory / "marks"
    futures = [
        executor.submit(apps.mark, {}, str(marks), 1000),
        executor.submit(apps.mark, TASK_JOB, str(marks), 1000),
    ]
    wait_until(lambda: marks.exists() and len(marks.read_text().split()) == 2, BOUND, "both run")
    return futures + [executor.submit(apps.nothing, spec) for spec in ({}, TASK_JOB) for _ in range(10)]


def assert_closed(futures: list[Future[Any]]) -> None:
    for future in futures:
        assert future.done()
        assert isinstance(future.exception(), ExecutorClosed)


# -- start and shutdown --------------------------------------------------------------------------------


def test_submit_before_start_is_refused(unstarted: FluxBulkExecutor) -> None:
    with pytest.raises(ExecutorClosed, match="'FluxBulkExecutor': tasks cannot be submitted before start"):
        unstarted.submit(apps.nothing, {})


def test_submit_after_shutdown_is_refused(started: FluxBulkExecutor) -> None:
    assert started.submit(apps.double, {}, 2).result(BOUND) == 4
    started.shutdown()
    with pytest.raises(ExecutorClosed, match="'FluxBulkExecutor': tasks cannot be submitted after shutdown"):
        started.submit(apps.nothing, {})
    assert started.status_report() is None


def test_shutdown_again_and_before_start_do_nothing(unstarted: FluxBulkExecutor) -> None:
    unstarted.shutdown()
    unstarted.start()
    assert unstarted.submit(apps.double, {}, 2).result(BOUND) == 4
    unstarted.shutdown()
    unstarted.shutdown()


def test_shutdown_at_once_after_start(started: FluxBulkExecutor) -> None:
    future = started.submit(apps.nothing, {})
    started.shutdown()
    assert future.done()


def test_start_again_after_shutdown(unstarted: FluxBulkExecutor) -> None:
    for n in range(3):
        unstarted.start()
        unstarted.start()
        assert unstarted.submit(apps.double, {}, n).result(BOUND) == 2 * n
        unstarted.shutdown()


def test_an_executor_that_a_failed_load_left_running_starts_anew(
    unstarted: FluxBulkExecutor, tmp_path: Path
) -> None:
    """If another executor of a Config fails to start, Parsl does not shut down those that did."""
    before = descendants(os.getpid())
    for run in ("first", "second"):
        unstarted.run_id, unstarted.run_dir = run, str(tmp_path / run)
        unstarted.start()
        if run == "first":
            assert unstarted.submit(apps.double, {}, 1).result(BOUND) == 2
            left = descendants(os.getpid()) - before
    wait_gone(left)
    assert unstarted.submit(apps.double, {}, 2).result(BOUND) == 4
    assert list((tmp_path / "second").rglob("tasks.trace"))
    running = unstarted.submit(apps.double, {}, 3)
    unstarted.start()  # of the same run: does nothing
    assert running.result(BOUND) == 6


def test_leaving_the_block_ends_what_is_outstanding(unstarted: FluxBulkExecutor, tmp_path: Path) -> None:
    with unstarted as executor:
        executor.start()
        futures = keep_busy(executor, tmp_path)
    assert_closed(futures)


def test_shutdown_while_others_submit(started: FluxBulkExecutor) -> None:
    futures: list[Future[Any]] = []
    refused = threading.Event()

    def submit_until_refused() -> None:
        try:
            while True:
                futures.append(started.submit(apps.nothing, {}))
        except ExecutorClosed:
            refused.set()

    threads = [threading.Thread(target=submit_until_refused) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(futures) > 100)
    started.shutdown()
    wait_event(refused)
    for thread in threads:
        thread.join(BOUND)
    # What was accepted was answered.
    assert all(future.done() for future in futures)
    assert {type(future.exception()) for future in futures} <= {type(None), ExecutorClosed}


def test_shutdown_in_a_callback(started: FluxBulkExecutor) -> None:
    called = threading.Event()

    def end(_: Future[Any]) -> None:
        started.shutdown()
        called.set()

    started.submit(apps.nothing, {}).add_done_callback(end)
    wait_event(called, BOUND)
    with pytest.raises(ExecutorClosed):
        started.submit(apps.nothing, {})


def test_an_instance_that_cannot_be_had(tmp_path: Path) -> None:
    executor = FluxBulkExecutor(instance="local:///no/such/flux")
    executor.run_dir = str(tmp_path)
    for _ in range(2):
        with pytest.raises(InstanceUnavailable):
            executor.start()
    with pytest.raises(ExecutorClosed):
        executor.submit(apps.nothing, {})
    executor.instance = "local"
    executor.start()
    assert executor.submit(apps.double, {}, 1).result(BOUND) == 2
    executor.shutdown()


def test_an_instance_object_is_used_as_it_is(tmp_path: Path) -> None:
    executor = FluxBulkExecutor(instance=LocalInstance(cores=1))
    executor.run_dir = str(tmp_path)
    executor.start()
    assert len(executor.submit(apps.affinity, {}).result(BOUND)) >= 1
    report = executor.status_report()
    assert report is not None and "1 core" in report.instance
    executor.shutdown()


# -- dropped -----------------------------------------------------------------------------------------


def started_and_busy(where: str, directory: Path) -> tuple[weakref.ref[FluxBulkExecutor], list[Future[Any]]]:
    executor = FluxBulkExecutor(instance=where)
    executor.run_dir = str(directory)
    executor.start()
    return weakref.ref(executor), keep_busy(executor, directory)


@pytest.mark.usefixtures("scratch")
def test_an_executor_that_is_dropped_ends(where: str, tmp_path: Path) -> None:
    reference, futures = started_and_busy(where, tmp_path)
    # A thread of the executor may hold it for a moment.
    wait_until(lambda: gc.collect() >= 0 and reference() is None, BOUND, "the executor is garbage")
    wait_until(lambda: all(future.done() for future in futures), BOUND, "its tasks have ended")
    assert_closed(futures)


def ended_while_busy(where: str, directory: Path) -> tuple[list[weakref.ref[Any]], list[BaseException]]:
    """Load Parsl, end it while tasks are outstanding; return references, and what `result` raised."""
    executor = FluxBulkExecutor(instance=where)
    raised = []
    with parsl.load(
        parsl.Config(executors=[executor], run_dir=str(directory), initialize_logging=False)
    ) as kernel:
        futures = keep_busy(executor, directory)
        called = [parsl.python_app(apps.nothing)() for _ in range(3)]
        wait_until(lambda: all(future.task_status() == "launched" for future in called), BOUND)
        futures += called
        executor.shutdown()
        for future in futures:
            try:
                future.result(BOUND)
            except Exception as error:
                raised.append(error)
    parsl.clear()
    return [weakref.ref(executor), weakref.ref(kernel)], raised


@pytest.mark.usefixtures("scratch")
def test_an_executor_that_was_shut_down_is_garbage(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(
        "CRITICAL", "parsl"
    )  # its records have tracebacks, which keep what their frames refer to
    references = ended_while_busy(where, tmp_path)[0]
    wait_until(
        lambda: gc.collect() >= 0 and [reference() for reference in references] == [None, None],
        BOUND,
        "executor and kernel are garbage",
    )


@pytest.mark.usefixtures("scratch")
def test_each_future_has_an_error_of_its_own(tmp_path: Path) -> None:
    _, raised = ended_while_busy("local", tmp_path)
    assert len({id(error) for error in raised}) == len(raised) > 20


@pytest.mark.usefixtures("scratch")
def test_an_executor_that_a_callback_drops_ends(tmp_path: Path) -> None:
    executor = FluxBulkExecutor(instance="local")
    executor.run_dir = str(tmp_path)
    executor.start()
    wait_until(executor.status_report, BOUND)
    holder, dropped = [executor], threading.Event()

    def drop(_: Future[Any]) -> None:
        holder.clear()
        dropped.set()

    future = executor.submit(apps.wait_for_file, {}, str(tmp_path / "go"))
    future.add_done_callback(drop)
    del executor
    (tmp_path / "go").touch()
    wait_event(dropped, BOUND)


# -- exit of the interpreter -----------------------------------------------------------------------------

OWNERS = [
    "local",
    pytest.param("flux", marks=pytest.mark.flux),
    pytest.param("attached", marks=pytest.mark.flux),
]


@pytest.fixture(params=OWNERS)
def instance(request: pytest.FixtureRequest) -> str:
    """What a script gives as its instance: embedded, a Flux of its own, one that goes on without it."""
    return request.getfixturevalue("flux_uri") if request.param == "attached" else request.param


BUSY = """
    import os, sys, time
    import apps
    from parsl_flux_bulk import FluxBulkExecutor

    executor = FluxBulkExecutor(instance={instance!r})
    executor.start()
    marks = os.path.abspath("marks")
    futures = [executor.submit(apps.mark, spec, marks, 1000) for spec in ({{}}, {{"num_tasks": 1}})]
    while not os.path.exists(marks) or len(open(marks).read().split()) < 2:
        time.sleep(0.01)
    futures += [executor.submit(apps.nothing, spec) for spec in ({{}}, {{"num_tasks": 1}}) for _ in range(10)]
"""


def started_tasks(directory: Path) -> set[int]:
    """The numbers of the processes that run the tasks of BUSY."""
    return {int(pid) for pid in (directory / "marks").read_text().split()}


def test_exit_with_tasks_outstanding(instance: str, tmp_path: Path, scratch: Path) -> None:
    done = run_script(BUSY.format(instance=instance) + '    print("leaving")\n', tmp_path, BOUND)
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
    wait_gone(started_tasks(tmp_path))


def test_exit_by_an_exception(tmp_path: Path, scratch: Path) -> None:
    done = run_script(BUSY.format(instance="local") + '    sys.exit("as planned")\n', tmp_path, BOUND)
    assert (done.returncode, done.stderr) == (1, "as planned\n")
    wait_gone(started_tasks(tmp_path))


def test_exit_with_parsl_loaded(instance: str, tmp_path: Path, scratch: Path) -> None:
    done = run_script(
        f"""
        import os, time
        import parsl
        from parsl.config import Config
        from parsl_flux_bulk import FluxBulkExecutor

        @parsl.python_app
        def wait():
            import os, time
            open("running", "w").close()
            time.sleep(1000)

        parsl.load(Config(executors=[FluxBulkExecutor(instance={instance!r})], initialize_logging=False))
        future = wait()
        while not os.path.exists("running"):
            time.sleep(0.01)
        """,
        tmp_path,
        BOUND,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_leaving_parsls_block_waits_for_the_tasks(tmp_path: Path, scratch: Path) -> None:
    done = run_script(
        """
        import parsl
        from parsl.config import Config
        from parsl_flux_bulk import FluxBulkExecutor

        @parsl.python_app
        def double(x):
            return 2 * x

        executor = FluxBulkExecutor(instance="local")
        with parsl.load(Config(executors=[executor], initialize_logging=False, exit_mode="wait")):
            futures = [double(x) for x in range(10)]
        print([future.result() for future in futures])
        """,
        tmp_path,
        BOUND,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{[2 * x for x in range(10)]}\n", "")


def test_a_forked_child_ends_nothing_of_ours(instance: str, tmp_path: Path, scratch: Path) -> None:
    done = run_script(
        f"""
        import os, sys
        import apps
        from parsl_flux_bulk import FluxBulkExecutor

        executor = FluxBulkExecutor(instance={instance!r})
        executor.start()
        assert executor.submit(apps.double, {{}}, 1).result(60) == 2
        child = os.fork()
        if child == 0:
            sys.exit(7)  # as a child of multiprocessing does not, but a careless one does
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert executor.submit(apps.double, {{}}, 2).result(60) == 4
        executor.shutdown()
        """,
        tmp_path,
        BOUND,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- death ---------------------------------------------------------------------------------------------


def kill_when_busy(instance: str, directory: Path, *, helpers_first: bool = False) -> None:
    """Kill a script with workers and task jobs running; wait until nothing of it is left.

    Parameters
    ----------
    helpers_first : bool
        Kill the script's own children before, which could have cleaned up after it.
    """
    before = descendants(os.getpid())
    with script(
        BUSY.format(instance=instance) + '    print("busy", flush=True); time.sleep(1000)\n', directory
    ) as user:
        assert user.stdout is not None and user.stdout.readline() == "busy\n"
        processes = descendants(os.getpid()) - before
        assert started_tasks(directory) <= processes and user.pid in processes
        for pid in descendants(user.pid) if helpers_first else ():
            kill(pid)  # the end of another one may have ended it
        user.send_signal(signal.SIGKILL)
        user.wait(BOUND)
        wait_gone(processes, END_BOUND)
        # What was started in the meantime, too.
        wait_until(lambda: not descendants(os.getpid()) - before, END_BOUND, "nothing is left")


def test_death_takes_everything_along(instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds until a worker would look for itself: too late for this test.
    monkeypatch.setenv(PING, "1000")
    kill_when_busy(instance, tmp_path)
    if ":" in instance:
        wait_until(lambda: not active_jobs(instance), END_BOUND, "no job of the killed script is left")


@pytest.mark.flux
def test_workers_end_by_themselves_when_nobody_cleans_up(
    flux_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PING, "0.5")
    kill_when_busy(flux_uri, tmp_path, helpers_first=True)
    wait_until(lambda: not active_jobs(flux_uri), END_BOUND, "no job of the killed script is left")


def test_death_while_starting(instance: str, tmp_path: Path) -> None:
    before = descendants(os.getpid())
    source = BUSY[: BUSY.index("    marks =")].format(instance=instance)
    source += """
    print("started", flush=True)
    for _ in range(100): executor.submit(apps.mark, {"num_tasks": 1}, "marks", 1000)
    time.sleep(1000)
    """
    with script(source, tmp_path) as user:
        assert user.stdout is not None and user.stdout.readline() == "started\n"
        user.send_signal(signal.SIGKILL)
        user.wait(BOUND)
        wait_until(lambda: not descendants(os.getpid()) - before, END_BOUND, "nothing is left")
    if ":" in instance:
        wait_until(lambda: not active_jobs(instance), END_BOUND, "no job of the killed script is left")


def test_sigterm_and_sigint_end_the_script_and_its_tasks(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        directory = tmp_path / str(int(number))
        directory.mkdir()
        before = descendants(os.getpid())
        with script(
            BUSY.format(instance="local") + '    print("busy", flush=True); time.sleep(1000)\n', directory
        ) as user:
            assert user.stdout is not None and user.stdout.readline() == "busy\n"
            user.send_signal(number)
            user.wait(SHUTDOWN_BOUND)
            wait_until(lambda before=before: not descendants(os.getpid()) - before, END_BOUND)


# -- callbacks and forks -------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), ValueError("x")], ids=repr)
def test_no_exception_in_a_callback_stops_anything(
    started: FluxBulkExecutor, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise raised

    for resources in ({}, TASK_JOB):
        called = threading.Event()
        future = started.submit(time.sleep, resources, 0.3)
        future.add_done_callback(fails)
        future.add_done_callback(lambda _, called=called: called.set())
        future.result(BOUND)
        wait_event(called, BOUND)
    assert [started.submit(abs, {}, -n).result(BOUND) for n in range(3)] == [0, 1, 2]
    assert repr(raised) in caplog.text


@pytest.mark.parametrize("resources", [{}, TASK_JOB], ids=["worker", "job"])
def test_exit_while_a_call_is_serialized(started: FluxBulkExecutor, resources: dict[str, int]) -> None:
    class Exits:
        def __reduce__(self) -> Any:
            raise SystemExit(5)

    with pytest.raises(CallNotSerializable, match=r"argument 1, of type .*Exits \(SystemExit: 5\)"):
        started.submit(abs, resources, Exits())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_at_once_that_it_cannot_submit(started: FluxBulkExecutor) -> None:
    running = started.submit(time.sleep, {}, 3600)
    fork = f"ExecutorClosed: process [0-9]+ is a fork of process {os.getpid()}, which started"
    assert re.match(fork, in_a_fork(lambda: started.submit(abs, {}, 1)))
    assert re.match(fork, in_a_fork(started.start))
    assert in_a_fork(started.shutdown) == "nothing"
    assert started.submit(abs, {}, -7).result(BOUND) == 7
    running.cancel()


def test_an_app_in_a_fork_is_an_error_at_once(tmp_path: Path) -> None:
    source = """
    import os, parsl
    from parsl.config import Config
    from parsl_flux_bulk import FluxBulkExecutor

    @parsl.python_app
    def app(number):
        return number

    with parsl.load(Config(executors=[FluxBulkExecutor(instance="local")])):
        print(app(1).result(), flush=True)
        if (pid := os.fork()) == 0:
            try:
                app(2).result(30)
            except Exception as error:
                print(type(error).__name__, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print(app(3).result())
    """
    done = run_script(source, tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\nNoDataFlowKernelError\n3\n"), done.stderr
