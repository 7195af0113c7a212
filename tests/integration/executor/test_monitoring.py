"""What an executor puts into the database of Parsl's monitoring: its nodes, and where each try ran."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import documentation
import helpers
import parsl
import psutil
import pytest
from parsl.config import Config
from parsl.providers import LocalProvider

from parsl_flux_bulk import FluxBulkExecutor, trace

pytest.importorskip("sqlalchemy", reason="Parsl's monitoring needs sqlalchemy")

from parsl.monitoring import MonitoringHub

BOUND = 60.0

INSTANCES = ["local", pytest.param("flux", marks=pytest.mark.flux)]


@parsl.python_app
def double(value: int, parsl_resource_specification: dict[str, int] = {}) -> int:  # noqa: B006
    return 2 * value


def run(directory: Path, executor: FluxBulkExecutor) -> dict[int, str]:
    """Run two small tasks and a task job; return the job of each Parsl task, as the trace has it."""
    config = Config(
        executors=[executor],
        run_dir=str(directory),
        strategy="none",
        initialize_logging=False,
        monitoring=MonitoringHub(resource_monitoring_interval=0),
    )
    before = set(helpers.own_processes())
    with parsl.load(config):
        assert [future.result(BOUND) for future in [double(1), double(2)]] == [2, 4]
        assert double(3, parsl_resource_specification={"num_tasks": 1}).result(BOUND) == 6
    helpers.wait_gone(set(helpers.own_processes()) - before)
    table = trace.tasks(directory)
    return {number - 1: job for number, job in zip(table["task"], table["job"], strict=True)}


def rows(directory: Path, query: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(directory / "monitoring.db")) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query)]


@pytest.mark.parametrize("instance", INSTANCES)
@pytest.mark.parametrize("blocks", [False, True], ids=["no blocks", "blocks"])
def test_nodes_and_the_job_of_each_try_are_in_the_database(
    tmp_path: Path, instance: str, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks:
        monkeypatch.delenv("FLUX_URI", raising=False)
    provider = LocalProvider(init_blocks=1, max_blocks=1) if blocks else None
    executor = FluxBulkExecutor(
        instance=None if blocks and instance == "flux" else instance, provider=provider
    )
    jobs = run(tmp_path, executor)
    block = "0" if blocks else ""
    nodes = rows(tmp_path, "SELECT * FROM node ORDER BY id")
    assert {node["uid"] for node in nodes if node["active"]} == {node["uid"] for node in nodes}
    for uid in {node["uid"] for node in nodes}:
        assert [node["active"] for node in nodes if node["uid"] == uid] == [True, False]
    for node in nodes:
        assert (node["hostname"], node["block_id"]) == (os.uname().nodename, block)
        assert node["run_id"] == executor.run_id
        assert (node["cpu_count"], node["total_memory"]) == (os.cpu_count(), psutil.virtual_memory().total)
        assert node["python_v"] == ".".join(map(str, sys.version_info[:3]))
        assert node["worker_count"] >= 1 and node["timestamp"] == node["last_heartbeat"]
    tries = rows(tmp_path, "SELECT * FROM try")
    assert [(one["hostname"], one["block_id"]) for one in tries] == [(os.uname().nodename, block)] * 3
    page = documentation.blocks_of(helpers.PROJECT / "docs" / "monitoring.md")
    (query,) = [block.text for block in page if block.language == "sql"]
    found: dict[int, set[str]] = {}
    for row in rows(tmp_path, query):
        found.setdefault(row["task_id"], set()).add(row["job"])
    assert all(jobs[task_id] in found[task_id] for task_id in range(3)), (jobs, found)
    assert jobs[2] not in found[0] | found[1], "that job came later"
