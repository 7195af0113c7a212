"""As many tasks run at once as the allocation says, whatever CPUs there are; on what is free, at once."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import apps
import helpers
import pytest
from parsl.providers import SlurmProvider

from parsl_flux_bulk import FluxBulkExecutor, FluxPoolExecutor
from parsl_flux_bulk.instances.local import LocalInstance

BOUND = 60.0
CORES = 7 * len(os.sched_getaffinity(0))

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


@pytest.fixture(params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def oversubscribed(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An instance that has more cores, by its configuration, than there are CPUs."""
    if request.param == "local":
        yield LocalInstance(cores=CORES, oversubscribe=True)
        return
    node = {"hosts": socket.gethostname(), "cores": f"0-{CORES - 1}"}
    config = json.dumps({"resource": {"noverify": True, "config": [node]}})
    with helpers.flux_instance(f"--conf={config}") as uri:
        yield uri


def run_at_once(executor: FluxBulkExecutor, count: int, specification: dict[str, Any], path: Path) -> None:
    """Wait until so many of one more tasks run, and check that the last one then does not."""
    gate, here = path / "gate", path / "here"
    here.mkdir()
    futures = [
        executor.submit(apps.arrive_and_wait, specification, str(here / str(number)), str(gate))
        for number in range(count + 1)
    ]
    helpers.wait_until(lambda: len(list(here.iterdir())) >= count, BOUND, f"{count} tasks run at once")
    assert len(list(here.iterdir())) == count
    gate.touch()
    for future in futures:
        future.result(BOUND)


@pytest.mark.parametrize(
    ("specification", "count"),
    [({}, CORES), ({"cores_per_task": 2}, CORES // 2), ({"num_tasks": 1}, CORES)],
    ids=["workers", "wide workers", "jobs"],
)
def test_an_oversubscribed_instance_has_no_idle_slots(
    new_executor: NewExecutor,
    oversubscribed: Any,
    specification: dict[str, Any],
    count: int,
    tmp_path: Path,
) -> None:
    with new_executor(oversubscribed) as executor:
        run_at_once(executor, count, specification, tmp_path)


@pytest.fixture(params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def two_cores(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "local":
        yield LocalInstance(cores=2, oversubscribe=True)
        return
    node = {"hosts": socket.gethostname(), "cores": "0-1"}
    with helpers.flux_instance(
        f"--conf={json.dumps({'resource': {'noverify': True, 'config': [node]}})}"
    ) as uri:
        yield uri


@pytest.mark.parametrize(
    ("options", "specification", "count"),
    [
        ({"cores_per_worker": 0.5}, {}, 4),
        ({"cores_per_worker": 0.3}, {}, 6),  # 2 / 0.3
        ({"cores_per_worker": 2}, {}, 1),
        ({"cores_per_worker": 0.5}, {"cores_per_task": 1}, 2),
        ({}, {"cores_per_task": 0.25}, 8),
        ({"max_workers_per_node": 1}, {}, 1),
        ({"max_workers_per_node": 3, "cores_per_worker": 0.5}, {}, 3),
        ({"max_workers": 3, "cores_per_worker": 0.5}, {}, 3),
    ],
    ids=str,
)
def test_as_many_workers_as_asked_for(
    new_executor: NewExecutor,
    two_cores: Any,
    options: dict[str, Any],
    specification: dict[str, Any],
    count: int,
    tmp_path: Path,
) -> None:
    with new_executor(two_cores, **options) as executor:
        run_at_once(executor, count, specification, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cores_per_worker": 0}, "must be a number such as 2 or 0.5, not 0"),
        ({"cores_per_worker": float("nan")}, "must be a number such as 2 or 0.5, not nan"),
        ({"cores_per_worker": 0.5, "tasks_per_job": 1}, "cores_per_worker must be 1, not 0.5"),
        ({"max_workers_per_node": 0}, "max_workers_per_node must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FluxBulkExecutor(**options)


def test_slots_of_a_node_are_workers() -> None:
    executor = FluxBulkExecutor(provider=SlurmProvider(cores_per_node=4), cores_per_worker=0.5)
    assert executor.workers_per_node == 8
    executor = FluxBulkExecutor(provider=SlurmProvider(cores_per_node=4), max_workers_per_node=3)
    assert executor.workers_per_node == 3


def test_a_pool_counts_workers_that_share_cores(
    two_cores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FluxPoolExecutor(instance=two_cores, cores_per_worker=0.5) as pool:
        assert pool.slots() == 4
        assert pool.with_resources(cores_per_task=0.25).slots() == 8


def test_tasks_share_a_gpu_of_the_embedded_instance(new_executor: NewExecutor, tmp_path: Path) -> None:
    instance = LocalInstance(cores=2, oversubscribe=True, gpus=1)
    with new_executor(instance, cores_per_worker=0.5) as executor:
        run_at_once(executor, 4, {"gpus_per_task": 0.25}, tmp_path)
        seen = executor.submit(apps.environment, {"gpus_per_task": 0.25}, "CUDA_VISIBLE_DEVICES")
        assert seen.result(BOUND) == {"CUDA_VISIBLE_DEVICES": "0"}
