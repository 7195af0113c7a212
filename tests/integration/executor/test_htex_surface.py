"""What code that was written for HighThroughputExecutor finds in this executor."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import apps
import helpers
import pytest
from parsl.executors import HighThroughputExecutor

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.instances.local import LocalInstance

BOUND = 60.0

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]

ABSENT = {
    "connected_managers_packages": "workers do not import Parsl, so nobody lists their packages",
    "enable_mpi_mode": "every task may ask for ranks, in its resource specification",
    "get_usage_information": "part of Parsl's usage tracking, which asks whether the attribute exists",
    "initialize_scaling": "internal: start() does what it does",
    "logdir": "internal: there is no interchange that writes logs",
    "mpi_launcher": "Flux starts MPI programs itself",
    "submit_payload": "internal: the format of its messages to the interchange",
    "worker_logdir": "internal: workers write to the files of their job",
}
"""Public attributes of HighThroughputExecutor that this executor has not, and why."""

VARIABLES = ("PARSL_WORKER_RANK", "PARSL_WORKER_COUNT", "PARSL_WORKER_POOL_ID", "PARSL_WORKER_BLOCK_ID")


def test_each_public_attribute_is_here_or_has_a_reason_not_to_be() -> None:
    theirs = {name for name in dir(HighThroughputExecutor) if not name.startswith("_")}
    missing = {name for name in theirs if not hasattr(FluxBulkExecutor, name)} - {"label"}
    assert missing == ABSENT.keys() & theirs


def test_before_the_start_nothing_is_connected() -> None:
    executor = FluxBulkExecutor(instance="local")
    assert (executor.connected_workers, executor.connected_managers(), executor.connected_blocks()) == (
        0,
        [],
        [],
    )
    with pytest.raises(ValueError, match="block '0' has not joined"):
        executor.hold_block("0")


@pytest.mark.parametrize("instance", ["local", pytest.param("flux", marks=pytest.mark.flux)])
def test_managers_are_those_that_their_tasks_name(
    new_executor: NewExecutor, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "of a script that is itself a task")
    with new_executor(instance) as executor:
        rank, count, pool, block = executor.submit(apps.environment, {}, *VARIABLES).result(BOUND).values()
        (manager,) = executor.connected_managers()
        assert (manager["manager"], manager["worker_count"], manager["block_id"]) == (pool, int(count), None)
        assert (manager["active"], manager["draining"], manager["tasks"]) == (True, False, 0)
        assert executor.connected_workers == int(count) > int(rank)
        assert block == ""
        alone = executor.submit(apps.environment, {"num_tasks": 1}, *VARIABLES)
        rank, count, pool, block = alone.result(BOUND).values()
        assert (rank, count, block) == ("0", "1", "")
        assert pool.startswith(os.uname().nodename)


def test_the_smallest_priority_goes_first(new_executor: NewExecutor, tmp_path: Path) -> None:
    order, gate = tmp_path / "order", tmp_path / "gate"
    with new_executor(LocalInstance(cores=1)) as executor:
        first = executor.submit(apps.arrive_and_wait, {}, str(tmp_path / "here"), str(gate))
        helpers.wait_until((tmp_path / "here").exists, BOUND, "the first task runs")
        futures = [
            executor.submit(apps.append, {} if priority is None else {"priority": priority}, str(order), name)
            for name, priority in [("e", None), ("c", 5), ("a", -1), ("d", 5), ("b", 0.5)]
        ]
        gate.touch()
        for future in [first, *futures]:
            future.result(BOUND)
    assert order.read_text().split() == ["a", "b", "c", "d", "e"]
