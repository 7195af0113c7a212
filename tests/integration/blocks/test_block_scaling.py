"""Blocks come with the work and go without: strategies, scale-in, held blocks, FluxProvider."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apps
import helpers
import pytest
from block_executors import (
    BOUND,
    KINDS,
    Local,
    Running,
    alive,
    members,
    new_executor,
    wait_alive,
    wait_members,
)

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import JobRefused
from parsl_flux_bulk.providers import FluxProvider


def open_blocks(executor: FluxBulkExecutor) -> set[str]:
    """Return the blocks whose workers are given tasks."""
    return {manager["block_id"] for manager in executor.connected_managers() if not manager["draining"]}


def fill_both_blocks(executor: FluxBulkExecutor, directory: Path) -> list[Future[bool]]:
    """Run a task on each core of two blocks until the file "gate" exists; return the futures."""
    told, count = directory / "told", 2 * len(os.sched_getaffinity(0))
    futures = [
        executor.submit(apps.tell_and_wait, {}, str(told), str(directory / "gate")) for _ in range(count)
    ]
    helpers.wait_lines(told, count, BOUND, "both blocks are busy")
    return futures


def scaling_run(executor: FluxBulkExecutor, most: int, gates: Path) -> None:
    """Out under load, in when idle, and out again; nothing is lost."""
    for turn in range(2):
        gate = gates / f"gate-{turn}"
        futures = [executor.submit(apps.wait_for_file, {}, str(gate)) for _ in range(24)]
        commands = [executor.submit(apps.double, {"num_tasks": 1}, number) for number in range(4)]
        wait_alive(executor, most)
        gate.touch()
        assert all(future.result(timeout=BOUND) for future in futures)
        assert [future.result(timeout=BOUND) for future in commands] == [0, 2, 4, 6]
        wait_alive(executor, 0)
        wait_members(executor, 0)
    report = executor.status_report()
    assert report is not None and (report.tasks.done, report.tasks.failed) == (56, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_simple_strategy_scales_out_and_in_and_out_again(
    running: Running, kind: str, tmp_path: Path
) -> None:
    provider = Local(init_blocks=0, min_blocks=0, max_blocks=2)
    with running(new_executor(kind, provider), strategy="simple", max_idletime=0.5) as executor:
        scaling_run(executor, 2, tmp_path)


def test_min_blocks_stay(running: Running, tmp_path: Path) -> None:
    provider = Local(init_blocks=2, min_blocks=1, max_blocks=2)
    gate = tmp_path / "gate"
    with running(new_executor("local", provider), strategy="simple", max_idletime=0.5) as executor:
        # More than one block has cores for: before they come, the strategy may have ended an idle block.
        count = 1 + len(os.sched_getaffinity(0))
        busy = [executor.submit(apps.wait_for_file, {}, str(gate)) for _ in range(count)]
        wait_members(executor, 2)
        gate.touch()
        assert all(future.result(timeout=BOUND) for future in busy)
        wait_members(executor, 1)
        assert executor.submit(apps.double, {}, 2).result(timeout=BOUND) == 4
        wait_alive(executor, 1)
        assert members(executor) == 1


def test_htex_auto_scale_gives_idle_blocks_back_while_others_work(running: Running, tmp_path: Path) -> None:
    soon, late = tmp_path / "soon", tmp_path / "late"
    executor = new_executor("local", Local(init_blocks=2, max_blocks=2))
    with running(executor, strategy="htex_auto_scale", max_idletime=0.5):
        count = 2 * len(os.sched_getaffinity(0))
        long = executor.submit(apps.wait_for_file, {}, str(late))
        others = [executor.submit(apps.wait_for_file, {}, str(soon)) for _ in range(count - 1)]
        wait_members(executor, 2)
        soon.touch()
        assert all(other.result(timeout=BOUND) for other in others)
        wait_alive(executor, 1)
        wait_members(executor, 1)
        assert not long.done()
        late.touch()
        assert long.result(timeout=BOUND) is True


def test_a_busy_block_that_is_given_back_ends_what_it_runs_and_the_rest_moves(
    running: Running, tmp_path: Path
) -> None:
    last_gate = tmp_path / "last-gate"
    with running(new_executor("local")) as executor:
        wait_members(executor, 2)
        first = fill_both_blocks(executor, tmp_path)
        rest = [executor.submit(apps.wait_for_file, {}, str(last_gate)) for _ in range(10)]
        (leaving,) = executor.scale_in_facade(1)
        helpers.wait_until(lambda: leaving not in open_blocks(executor), BOUND, "it gets no more tasks")
        assert members(executor) == 2 and not any(future.done() for future in first)
        (tmp_path / "gate").touch()
        wait_members(executor, 1)
        assert all(future.result(timeout=BOUND) for future in first)
        assert not any(future.done() for future in rest), "it ended with the work, not before it"
        last_gate.touch()
        assert all(future.result(timeout=BOUND) for future in rest)
        assert alive(executor) == 1


def test_a_held_block_gets_no_more_tasks_and_says_so(running: Running, tmp_path: Path) -> None:
    with running(new_executor("local")) as executor:
        wait_members(executor, 2)
        assert executor.connected_blocks() == ["0", "1"]
        with pytest.raises(ValueError, match="block '7' has not joined"):
            executor.hold_block("7")
        first = fill_both_blocks(executor, tmp_path)
        executor.hold_block("0")
        helpers.wait_until(lambda: "0" not in open_blocks(executor), BOUND, "it gets no more tasks")
        blocks = [executor.submit(os.getenv, {}, "PARSL_WORKER_BLOCK_ID") for _ in range(10)]
        (tmp_path / "gate").touch()
        assert {future.result(timeout=BOUND) for future in blocks} == {"1"}
        assert all(future.result(timeout=BOUND) for future in first)
        connected = lambda: {manager["block_id"] for manager in executor.connected_managers()}  # noqa: E731
        helpers.wait_until(lambda: connected() == {"1"}, BOUND, "its workers have ended")
        assert alive(executor) == 2


def test_a_block_that_has_not_joined_can_be_given_back(running: Running) -> None:
    provider = Local(init_blocks=1, max_blocks=1, worker_init="sleep 600")
    with running(new_executor("local", provider)) as executor:
        wait_alive(executor, 1)
        assert executor.scale_in_facade(1) == ["0"]
        assert alive(executor) == 0


def test_two_tasks_of_a_whole_node_get_two_blocks_and_many_small_ones_get_one(
    running: Running, tmp_path: Path
) -> None:
    provider = Local(init_blocks=0, min_blocks=0, max_blocks=3)
    with running(new_executor("local", provider), strategy="simple") as executor:
        cores = len(os.sched_getaffinity(0))
        assert executor.submit(apps.double, {}, 1).result(timeout=BOUND) == 2
        assert len(executor.blocks_to_job_id) == 1, "its size is known now"
        gate = str(tmp_path / "gate")
        both = [executor.submit(apps.wait_for_file, {"cores_per_task": cores}, gate) for _ in range(2)]
        assert executor.outstanding() == 2 * cores
        wait_members(executor, 2)
        wait_alive(executor, 2)
        Path(gate).touch()
        for future in both:
            future.result(timeout=BOUND)


# -- FluxProvider: blocks of a machine whose scheduler is Flux --------------------------------------------


@pytest.fixture(scope="module")
def system_uri() -> Iterator[str]:
    """A Flux of four brokers, in the part of the system's."""
    with helpers.flux_instance("-s4") as uri:
        yield uri


def flux_provider(uri: str, **options: Any) -> FluxProvider:
    class Quick(FluxProvider):
        status_polling_interval = 1  # type: ignore[assignment]

    return Quick(
        uri=uri,
        nodes_per_block=2,
        walltime="00:10:00",
        worker_init=f"export FROM_INIT=1 PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        **options,
    )


@pytest.mark.flux
@pytest.mark.timeout(240)
def test_flux_provider_scales_out_and_in_and_out_again(
    running: Running, system_uri: str, tmp_path: Path
) -> None:
    provider = flux_provider(system_uri, init_blocks=0, min_blocks=0, max_blocks=2)
    executor = FluxBulkExecutor(label="blocks", provider=provider, address="127.0.0.1")
    with running(executor, strategy="simple", max_idletime=0.5):
        scaling_run(executor, 2, tmp_path)


@pytest.mark.flux
def test_a_block_of_flux_provider_has_all_its_nodes_and_knows_its_walltime(
    running: Running, system_uri: str
) -> None:
    executor = FluxBulkExecutor(
        label="blocks", provider=flux_provider(system_uri, init_blocks=1), address="127.0.0.1"
    )
    with running(executor):
        wait_members(executor, 1)
        report = executor.status_report()
        assert report is not None and "2 node(s)" in report.instance
        spec = {"num_nodes": 2, "num_tasks": 2, "duration": 500}
        said = executor.submit(apps.environment, spec, "FROM_INIT").result(timeout=BOUND)
        assert said == {"FROM_INIT": "1"}
        with pytest.raises(JobRefused, match="for 700 s"):
            executor.submit(apps.nothing, {"duration": 700}).result(timeout=BOUND)
