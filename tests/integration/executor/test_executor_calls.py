"""Calls with resources, surroundings and serializers of their own; and what the executor says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import apps
import parsl
import pytest
from helpers import run_script, wait_until
from parsl.executors.errors import InvalidResourceSpecification

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import ExecutorClosed, JobRefused, JobTimeout, TaskCrashed

BOUND = 60.0

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]
MODES = [pytest.param(None, id="workers"), pytest.param(1, id="jobs")]

# -- resources -----------------------------------------------------------------------------------------


def test_every_rank_runs_and_rank_0_answers(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    ranks = tmp_path / "ranks"
    assert executor.submit(apps.rank, {"num_tasks": 2}, str(ranks)).result(BOUND) == (0, 2)
    assert sorted(ranks.read_text().split()) == ["0", "1"]


def test_an_app_whose_resource_specification_has_no_default(
    new_executor: NewExecutor, tmp_path: Path
) -> None:
    with (
        new_executor("local") as executor,
        parsl.load(parsl.Config(executors=[executor], run_dir=str(tmp_path / "runinfo"))),
    ):
        app = parsl.python_app(_with_resources)
        error = app().exception(BOUND)
        assert app(parsl_resource_specification={"cores_per_task": 1}).result(BOUND) == 1
    assert isinstance(error, TypeError)
    assert "parsl_resource_specification has no default: write parsl_resource_specification={}" in str(error)


def _with_resources(parsl_resource_specification: dict[str, Any]) -> int:
    return len(parsl_resource_specification)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_raises_fails_the_task(executor: FluxBulkExecutor, failing: int) -> None:
    error = executor.submit(apps.fail_on_rank, {"num_tasks": 2}, failing).exception(BOUND)
    assert type(error) is apps.Planned and error.args == (f"on {failing}",)
    assert error.__notes__ == [f"raised on rank {failing}"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_exits_fails_the_task(executor: FluxBulkExecutor, failing: int) -> None:
    error = executor.submit(apps.exit_on_rank, {"num_tasks": 2}, failing, 5).exception(BOUND)
    assert isinstance(error, TaskCrashed)
    assert error.exit_code == 5 and error.job and error.host
    assert "exit_on_rank" in str(error) and "exit status 5" in str(error)


def test_cores_of_a_task_are_its_own(executor: FluxBulkExecutor) -> None:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("needs two cores")
    one = executor.submit(apps.affinity, {"cores_per_task": 1}).result(BOUND)
    both = executor.submit(apps.affinity, {"cores_per_task": 2}).result(BOUND)
    assert len(one) < len(both)


@pytest.mark.parametrize(
    ("specification", "key", "words"),
    [
        ({"cores": 2}, "cores", "'cores'"),
        ({"num_tasks": 0}, "num_tasks", "'num_tasks': 0"),
        ({"num_tasks": "2"}, "num_tasks", "'num_tasks': '2'"),
        ({"num_nodes": 2, "num_tasks": 1}, "num_nodes", "must not be more than the number of tasks"),
        ({"exclusive": True}, "exclusive", "needs 'num_nodes'"),
    ],
)
def test_a_wrong_specification_is_refused_at_once(
    executor: FluxBulkExecutor, specification: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(InvalidResourceSpecification) as caught:
        executor.submit(apps.nothing, specification)
    assert caught.value.invalid_keys == {key}
    assert words in str(caught.value) and "Valid keys: " in str(caught.value)


def test_more_than_there_is_is_refused_by_the_instance(executor: FluxBulkExecutor) -> None:
    for specification in ({"num_tasks": 10_000}, {"cores_per_task": 10_000}):
        error = executor.submit(apps.nothing, specification).exception(BOUND)
        assert isinstance(error, JobRefused), error
        assert "nothing (task " in str(error)
    assert executor.submit(apps.double, {}, 1).result(BOUND) == 2


def test_a_duration_that_runs_out(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    error = executor.submit(apps.mark, {"duration": 1}, str(tmp_path / "marks"), 1000).exception(BOUND)
    assert isinstance(error, JobTimeout)
    assert "mark (task " in str(error) and "its duration ran out" in str(error)


# -- surroundings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks_per_job", MODES)
def test_environment_reaches_the_tasks(
    where: str, new_executor: NewExecutor, tasks_per_job: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "ours")
    monkeypatch.setenv("CHANGED", "before")
    with new_executor(
        where, tasks_per_job=tasks_per_job, environment={"CHANGED": "after", "ADDED": "added"}
    ) as executor:
        seen = executor.submit(apps.environment, {}, "OURS", "CHANGED", "ADDED").result(BOUND)
    assert seen == {"OURS": "ours", "CHANGED": "after", "ADDED": "added"}


@pytest.mark.parametrize("tasks_per_job", MODES)
def test_tasks_run_where_we_are_and_their_output_is_where_it_is_wanted(
    where: str,
    new_executor: NewExecutor,
    tasks_per_job: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, output = tmp_path / "here", tmp_path / "deep" / "output"
    here.mkdir()
    monkeypatch.chdir(here)
    with new_executor(where, tasks_per_job=tasks_per_job, working_dir=str(output)) as executor:
        assert executor.submit(apps.cwd, {}).result(BOUND) == str(here)
        executor.submit(apps.say, {}, "said", "warned").result(BOUND)
    files = [path for path in output.glob("jobs-*/*") if path.suffix in (".out", ".err")]
    printed = {path.suffix: path.read_text() for path in files if path.stat().st_size}
    assert printed[".out"] == "said\n" and printed[".err"] == "warned\n"
    assert list(here.iterdir()) == []


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter of the same version that has neither Parsl nor cloudpickle."""
    directory = tmp_path_factory.mktemp("python")
    base = os.path.realpath(sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=BOUND)
    return str(directory / "bin" / "python")


def in_a_script(body: str, instance: str, directory: Path, options: str = "") -> str:
    """Run `body` as a user's script with an executor; return what it printed."""
    done = run_script(
        "from parsl_flux_bulk import FluxBulkExecutor\n"
        f"executor = FluxBulkExecutor(instance={instance!r}{options})\n" + body,
        directory,
        BOUND,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("mode", ["", ", tasks_per_job=1"], ids=["workers", "jobs"])
def test_a_python_that_has_only_the_standard_library(
    where: str, mode: str, other_python: str, tmp_path: Path
) -> None:
    script = """
def look(x):
    import sys
    if x < 0:
        raise ValueError(x)
    try:
        import parsl
    except ImportError:
        return sys.executable, x
with executor:
    executor.start()
    print(*executor.submit(look, {}, 3).result(60))
    print(repr(executor.submit(look, {}, -3).exception(60)))
"""
    printed = in_a_script(
        script, where, tmp_path, f", python={other_python!r}, environment={{'PYTHONPATH': ''}}{mode}"
    )
    assert printed == f"{other_python} 3\nValueError(-3)\n"


# -- functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["", ", tasks_per_job=1"], ids=["workers", "jobs"])
def test_a_plain_function_of_a_script_needs_neither_parsl_nor_cloudpickle(
    where: str, mode: str, tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    script = """
import beside
from parsl.app.errors import wrap_error
factor = 2
def look(x):
    import sys
    heavy = {"parsl", "dill", "cloudpickle", "typeguard", "flux", "asyncio"} & {*sys.modules}
    return sorted(heavy), 2 * x
def with_beside(x):
    from beside import triple
    return triple(x)
with executor:
    executor.start()
    print(*executor.submit(wrap_error(look), {}, 4).result(60))
    print(executor.submit(beside.triple, {}, 4).result(60), executor.submit(with_beside, {}, 5).result(60))
"""
    assert in_a_script(script, where, tmp_path, mode) == "[] 8\n12 15\n"


@pytest.mark.parametrize("mode", ["", ", tasks_per_job=1"], ids=["workers", "jobs"])
def test_classes_of_a_script_are_the_scripts_own(where: str, mode: str, tmp_path: Path) -> None:
    script = """
class Mine(Exception):
    def __init__(self, text, *, code):
        super().__init__(text)
        self.code = code
class Point:
    def __init__(self, x): self.x = x
def fail(kind, x):
    raise kind(f"number {x}", code=x)
def move(point):
    return type(point)(point.x + 1)
with executor:
    executor.start()
    try:
        executor.submit(fail, {}, Mine, 3).result(60)
    except Mine as error:
        print(error, error.code)
    moved = executor.submit(move, {}, Point(1)).result(60)
    print(type(moved) is Point, moved.x)
"""
    assert in_a_script(script, where, tmp_path, mode) == "number 3 3\nTrue 2\n"


def test_modules_beside_the_script_wherever_that_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from parsl_flux_bulk.executor.serialize_calls import own_sys_path

    beside = tmp_path / "project"
    beside.mkdir()
    # A name that begins as the interpreter's own, or inside of it, is no library of the interpreter.
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "pro"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    libraries = [path for path in sys.path if path.endswith(("site-packages", "lib-dynload"))]
    monkeypatch.setattr(sys, "path", [str(beside), str(tmp_path / "missing"), *libraries])
    assert own_sys_path() == (str(beside),)


@pytest.mark.parametrize("mode", ["", ", tasks_per_job=1"], ids=["workers", "jobs"])
def test_a_users_serializer_does_the_work(where: str, mode: str, tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(
        "import pickle\n"
        "from parsl.serialize.base import SerializerBase\n"
        "class Shouting(SerializerBase):\n"
        "    _for_code = True\n"
        "    _for_data = True\n"
        "    def serialize(self, data):\n"
        "        if isinstance(data, tuple):\n"
        "            data = tuple(x.upper() for x in data)\n"
        "        return pickle.dumps(data)\n"
        "    def deserialize(self, payload):\n"
        "        return pickle.loads(payload)\n"
        "def echo(*args):\n"
        "    return args\n"
    )
    script = """
import shouting
from parsl.serialize import facade
facade.methods_for_code.clear()
facade.methods_for_data.clear()
facade.register_method_for_code(shouting.Shouting())
facade.register_method_for_data(shouting.Shouting())
with executor:
    executor.start()
    print(executor.submit(shouting.echo, {}, "quiet", "words").result(60))
"""
    assert in_a_script(script, where, tmp_path, mode) == "('QUIET', 'WORDS')\n"


# -- what the executor says of itself ----------------------------------------------------------------------


def test_futures_know_the_executors_number_of_their_task(executor: FluxBulkExecutor) -> None:
    first, second = (executor.submit(apps.nothing, {}) for _ in range(2))
    assert second.parsl_executor_task_id == first.parsl_executor_task_id + 1  # type: ignore[attr-defined]
    first.result(BOUND)
    second.result(BOUND)


def test_status_report(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    before = wait_until(executor.status_report, BOUND).tasks
    marks = tmp_path / "marks"
    running = executor.submit(apps.mark, {}, str(marks), 1000)
    futures = [executor.submit(apps.double, {}, n) for n in range(5)] + [executor.submit(apps.fail, {}, "x")]
    for future in futures:
        future.exception(BOUND)
    wait_until(marks.exists, BOUND)
    task_jobs = 1 if executor.tasks_per_job == 1 else 0
    # A job ends a little later than its task.
    wait_until(lambda: executor.status_report().tasks.task_jobs == task_jobs, BOUND)
    report = executor.status_report()
    tasks = report.tasks
    assert (tasks.done - before.done, tasks.failed - before.failed) == (5, 1)
    assert (tasks.running, tasks.pending) == (1, 0)
    if executor.tasks_per_job == 1:
        assert tasks.worker_jobs == sum(tasks.workers.values()) == 0
    else:
        assert tasks.worker_jobs >= 1
        assert sum(tasks.workers.values()) >= sum(tasks.busy_workers.values()) >= 1
    assert report.active_jobs >= 1 and report.waiting_jobs == 0
    assert report.instance
    running.cancel()
    wait_until(lambda: executor.status_report().tasks.canceled == before.canceled + 1, BOUND)


def test_workers_are_replaced_after_so_many_tasks(where: str, new_executor: NewExecutor) -> None:
    with new_executor(where, tasks_per_worker=2) as executor:
        pids = [executor.submit(apps.whoami, {}).result(BOUND)[1] for _ in range(12)]
    assert max(pids.count(pid) for pid in pids) <= 2


def test_with_isolation_each_task_has_a_process_of_its_own(where: str, new_executor: NewExecutor) -> None:
    with new_executor(where, isolation="task") as executor:
        futures = [executor.submit(apps.whoami, {}) for _ in range(12)]
        assert len({future.result(BOUND)[1] for future in futures}) == 12


def test_idle_workers_leave(where: str, new_executor: NewExecutor) -> None:
    with new_executor(where, worker_idle_time=0.2) as executor:
        assert executor.submit(apps.double, {}, 1).result(BOUND) == 2
        wait_until(
            lambda: (r := executor.status_report()) and not r.tasks.worker_jobs and not r.active_jobs, BOUND
        )
        assert executor.submit(apps.double, {}, 2).result(BOUND) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks_per_job": 2}, "tasks_per_job must be 1 or None, not 2"),
        ({"max_active_jobs": 0}, "max_active_jobs must be at least 1, or None, not 0"),
        ({"tasks_per_worker": -1}, "tasks_per_worker must be at least 1, or None, not -1"),
        ({"isolation": "thread"}, "isolation must be 'worker' or 'task', not 'thread'"),
        ({"isolation": "task", "tasks_per_worker": 5}, "must be None, not 5"),
        ({"worker_idle_time": -0.5}, "worker_idle_time must be a number of seconds, from 0"),
        ({"worker_idle_time": float("nan")}, "worker_idle_time must be a number of seconds, from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FluxBulkExecutor(**options)


def test_an_executor_says_what_it_is() -> None:
    executor = FluxBulkExecutor(label="here", instance="local", worker_idle_time=1)
    assert repr(executor).startswith("FluxBulkExecutor(") and "label='here'" in repr(executor)
    assert executor.monitor_resources() and executor.remote_monitoring_radio is not None
    assert executor.status_report() is None
    with pytest.raises(ExecutorClosed):
        executor.submit(apps.nothing, {})
