"""Embedded instances on one host do not pin their jobs to the same cores."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import apps
import helpers
import pytest

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.local import LocalInstance
from parsl_flux_bulk.instances.local.core_claims import CoreClaims
from parsl_flux_bulk.instances.local.machine import claims_path
from parsl_flux_bulk.protocol import variables
from parsl_flux_bulk.worker.pinning import physical_cores

BOUND = 60.0
CORES = [sorted(core) for core in physical_cores()]
EVERYTHING = sorted(os.sched_getaffinity(0))

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]

two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


@pytest.fixture(autouse=True)
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for claims that no other test uses."""
    monkeypatch.setenv(variables.CLAIMS, str(tmp_path))
    return tmp_path


def affinities(executor: FluxBulkExecutor) -> tuple[list[int], list[int]]:
    """Of a warm worker, and of a job of its own."""
    worker = executor.submit(apps.affinity, {}).result(BOUND)
    return worker, executor.submit(apps.affinity, {"num_tasks": 1}).result(BOUND)


def affinity_in_a_meeting(directory: str, count: int) -> list[int]:
    """Return the CPUs once so many tasks run."""
    Path(directory, f"worker-{os.getpid()}").touch()
    helpers.wait_until(lambda: len(list(Path(directory).glob("worker-*"))) == count, BOUND)
    return apps.affinity()


@two_cores
def test_two_instances_pin_to_different_cores(new_executor: NewExecutor) -> None:
    with new_executor(LocalInstance(cores=1)) as one, new_executor(LocalInstance(cores=1)) as other:
        assert affinities(one) == (CORES[0], CORES[0])
        assert affinities(other) == (CORES[1], CORES[1])


@two_cores
def test_what_cannot_be_claimed_is_not_pinned(
    new_executor: NewExecutor, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with new_executor(LocalInstance()) as one:
        assert affinities(one) == (CORES[0], CORES[1])
        with caplog.at_level("INFO"), new_executor(LocalInstance()) as other:
            # In one job, which has as many cores as there are: its manager must not divide them either.
            meeting = [other.submit(affinity_in_a_meeting, {}, str(tmp_path), len(CORES)) for _ in CORES]
            assert [future.result(BOUND) for future in meeting] == [EVERYTHING] * len(CORES)
            assert other.submit(apps.affinity, {"num_tasks": 1}).result(BOUND) == EVERYTHING
        assert f"cores shared pinned=0 of {len(CORES)}" in caplog.text


@two_cores
def test_cores_that_are_claimed_are_taken_first(new_executor: NewExecutor) -> None:
    with new_executor(LocalInstance(cores=1)) as one, new_executor(LocalInstance()) as other:
        assert affinities(one) == (CORES[0], CORES[0])
        assert other.submit(apps.affinity, {"num_tasks": 1}).result(BOUND) == CORES[1]


def test_a_killed_script_holds_no_claim(new_executor: NewExecutor, tmp_path: Path) -> None:
    source = """
        from parsl_flux_bulk.instances.local import LocalInstance
        instance = LocalInstance()
        instance.start()
        print("started", flush=True)
        input()
    """
    with helpers.script(source, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert not claimable(CORES[0])
        process.send_signal(signal.SIGKILL)
        process.wait(BOUND)
        helpers.wait_until(lambda: claimable(CORES[0]), BOUND, "the server has ended")
    with new_executor(LocalInstance()) as executor:
        assert executor.submit(apps.affinity, {}).result(BOUND) == CORES[0]


def test_without_a_file_nothing_is_pinned(new_executor: NewExecutor, claims: Path) -> None:
    (claims / Path(claims_path()).name).mkdir()
    with new_executor(LocalInstance()) as executor:
        assert affinities(executor) == (EVERYTHING, EVERYTHING)


def test_a_directory_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.CLAIMS, "/nowhere")
    with pytest.raises(InstanceUnavailable, match="PARSL_FLUX_BULK_CLAIMS='/nowhere' is not a directory"):
        LocalInstance().start()


def test_threads_of_one_core_are_one_claim(tmp_path: Path) -> None:
    for cpu in range(4):
        (tmp_path / f"cpu{cpu}").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    siblings = f"{tmp_path}/cpu{{}}"
    mine = CoreClaims(claims_path(), siblings)
    assert mine.choose([(0,)], 1) == [(0,)]
    assert chosen_by_another([(2,), (3,)], siblings) == "[(3,), ()]"


def test_more_cores_than_there_are_share_claims(tmp_path: Path) -> None:
    assert CoreClaims(claims_path()).choose([(0,), (1,)], 3) == [(0,), (1,), (0,)]


def chosen_by_another(usable: list[tuple[int, ...]], siblings: str) -> str:
    """Let another process claim cores: a process may claim its own again."""

    def choose() -> None:
        raise RuntimeError(CoreClaims(claims_path(), siblings).choose(usable, len(usable)))

    return helpers.in_a_fork(choose).removeprefix("RuntimeError: ")


def claimable(core: list[int]) -> bool:
    return chosen_by_another([tuple(core)], "/nowhere/{}") != "[()]"
