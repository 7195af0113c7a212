"""What an executor writes to its trace: tasks with their times, jobs, blocks, failures."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path

import apps
import helpers
import parsl
import pytest
from parsl.providers import LocalProvider

from parsl_flux_bulk import FluxBulkExecutor, trace
from parsl_flux_bulk.trace.reader import TIMES, find
from parsl_flux_bulk.trace.writer import request

INSTANCES = ["local", pytest.param("flux", marks=pytest.mark.flux)]


def executor(directory: Path, instance: str | None, **options: object) -> FluxBulkExecutor:
    return FluxBulkExecutor(instance=instance, working_dir=str(directory), **options)


@pytest.mark.parametrize("instance", INSTANCES)
def test_every_task_has_its_times_its_worker_and_its_job(tmp_path: Path, instance: str) -> None:
    began = time.time()
    with executor(tmp_path, instance) as own:
        futures = [own.submit(time.sleep, {}, 0.01) for _ in range(20)]
        futures += [own.submit(os.getpid, {"num_tasks": 1}), own.submit(math.sqrt, {}, -1)]
        for future in futures:
            future.exception(60)
        own.shutdown()
    table = trace.tasks(tmp_path)
    assert sorted(table["task"]) == list(range(1, 23))
    for number in range(22):
        times = [table[name][number] for name in TIMES]
        # The clocks of the executor and of a worker on the same host may differ by what NTP corrects.
        assert times == sorted(times, key=lambda t: round(t, 3)) or times == pytest.approx(
            sorted(times), abs=0.01
        )
        assert began - 1 < times[0] and times[-1] < time.time() + 1
    rows = dict(zip(table["task"], range(22), strict=True))
    assert {table["app"][rows[number]] for number in range(1, 21)} == {"sleep"}
    assert all(table["ended"][rows[n]] - table["started"][rows[n]] >= 0.009 for n in range(1, 21))
    assert all(table["worker"][rows[n]] and table["host"][rows[n]] for n in range(1, 21))
    assert all(table["cores"][row] == 1 and table["job"][row] for row in range(22))
    assert table["outcome"][rows[21]] == "completed" and not table["worker"][rows[21]]
    assert table["outcome"][rows[22]] == "failed"
    read = trace.read(tmp_path)
    (failure,) = read.failures
    assert (failure["task"], failure["type"]) == (22, "ValueError")
    started = [job for job in read.jobs.values() if "started" in job]  # others were not needed any more
    assert {job["kind"] for job in started} == {"workers", "task"}
    for job in started:  # a job may start, and end, before the reply to its submission has come
        assert job["started"] <= job["ended"]
        assert all(began - 1 < job[name] < time.time() + 1 for name in ("submitted", "started", "ended"))
    assert read.finished and read.run["config"]["instance"] == repr(instance)
    assert read.statuses[-1]["done"] + read.statuses[-1]["failed"] == 22


def test_the_environment_is_not_in_the_trace(tmp_path: Path) -> None:
    with executor(tmp_path, "local", environment={"TOKEN": "secret"}) as own:
        own.submit(int, {}).result(60)
        own.shutdown()
    (path,) = find(tmp_path)
    content = Path(path).read_bytes()
    assert b"TOKEN" in content and b"secret" not in content


def test_without_trace_there_is_no_file(tmp_path: Path) -> None:
    with executor(tmp_path, "local", trace=False) as own:
        own.submit(int, {}).result(60)
        own.shutdown()
    assert not list(tmp_path.rglob("*.trace"))


def test_a_block_has_its_own_times(tmp_path: Path) -> None:
    provider = LocalProvider(init_blocks=1, max_blocks=1)
    own = executor(tmp_path / "own", "local", provider=provider)
    with parsl.load(parsl.Config(executors=[own], run_dir=str(tmp_path / "run"))):
        parsl.python_app(apps.double)(1).result()
    (block,) = trace.read(tmp_path / "own").blocks.values()
    assert block["launched"] <= block["joined"] and block["cores"] > 0
    assert {worker["block"] for worker in trace.read(tmp_path / "own").workers.values()} == {"0"}


def test_another_process_watches_reads_a_story_and_cancels(tmp_path: Path) -> None:
    with executor(tmp_path, "local") as own:
        future = own.submit(time.sleep, {}, 100)
        (path,) = find(tmp_path)
        read = trace.read(path)
        request(path, "watch")

        def shown() -> list[object]:
            read.update()
            return [t for status in read.statuses for t in status["tasks"] if t[3] == "running"]

        own.submit(int, {}).result(60)  # something happens, so that there are counts
        helpers.wait_until(lambda: own.submit(int, {}).result(60) == 0 and shown(), bound=60)
        request(path, "story 1")
        helpers.wait_until(lambda: read.update() and read.stories, bound=60)
        assert read.stories[0]["task"] == 1 and "assign" in "".join(read.stories[0]["lines"])
        request(path, "cancel 1")
        helpers.wait_until(lambda: future.cancelled(), bound=60)
        own.shutdown()
    read.update()
    assert trace.tasks(tmp_path)["outcome"][trace.tasks(tmp_path)["task"].index(1)] == "canceled"


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("duckdb")
    with executor(tmp_path / "runinfo" / "000", "local") as own:
        for future in [own.submit(int, {}) for _ in range(5)]:
            future.result(60)
        own.shutdown()
    text = (helpers.PROJECT / "docs" / "trace.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    done = helpers.run_script("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "5 tasks" and lines[-1].split()[1] == "int"
