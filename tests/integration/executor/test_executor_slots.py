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

from parsl_flux_bulk import FluxBulkExecutor
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


@pytest.mark.parametrize("width", [1, 2])
def test_an_oversubscribed_instance_has_no_idle_slots(
    new_executor: NewExecutor, oversubscribed: Any, width: int, tmp_path: Path
) -> None:
    count = CORES // width
    gate, here = tmp_path / "gate", tmp_path / "here"
    here.mkdir()
    with new_executor(oversubscribed) as executor:
        futures = [
            executor.submit(
                apps.arrive_and_wait, {"cores_per_task": width}, str(here / str(number)), str(gate)
            )
            for number in range(count)
        ]
        helpers.wait_until(lambda: len(list(here.iterdir())) == count, BOUND, "all tasks run at once")
        gate.touch()
        for future in futures:
            future.result(BOUND)
