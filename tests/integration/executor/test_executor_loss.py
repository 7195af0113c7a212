"""The loss of the instance ends everything outstanding, at once, and says what happened."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import apps
import pytest
from helpers import descendants, flux, flux_instance, kill, process_table, wait_gone, wait_until

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import JobRequest, Refusal
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.jobspec import build
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.protocol.variables import PING

BOUND = 60.0

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


@pytest.mark.parametrize("kind", ["local", pytest.param("flux", marks=pytest.mark.flux)])
def test_everything_outstanding_ends(
    kind: str, new_executor: NewExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PING, "1")
    marks = tmp_path / "marks"
    with ExitStack() as stack:
        before = descendants(os.getpid())
        instance = stack.enter_context(flux_instance()) if kind == "flux" else "local"
        executor = stack.enter_context(new_executor(instance))
        futures = [executor.submit(apps.mark, spec, str(marks), 1000) for spec in ({}, {"num_tasks": 1})]
        wait_until(lambda: marks.exists() and len(marks.read_text().split()) == 2, BOUND)
        futures += [executor.submit(apps.nothing, spec) for spec in ({}, {"num_tasks": 1}) for _ in range(10)]
        running = [int(pid) for pid in marks.read_text().split()]
        # Whatever is between the tasks and us; the instance first, or it could tell of its workers' ends.
        table = process_table()
        between = descendants(os.getpid(), table=table) - before - set(running)
        for pid in sorted(between, key=lambda pid: table[pid][0] in between):
            kill(pid)
        for future in futures:
            error = future.exception(BOUND)
            assert isinstance(error, InstanceLost), error
        assert str(error) and "(Success)" not in str(error)
        with pytest.raises(InstanceLost):
            executor.submit(apps.nothing, {})
        wait_gone(running, BOUND)


@pytest.mark.flux
@pytest.mark.parametrize("delay", [0.02, 0.1, 0.2])
def test_a_broker_that_dies_amid_submissions_is_lost_and_has_refused_nothing(delay: float) -> None:
    request = JobRequest(build(Resources(), ["true"], environment=os.environ, cwd="/"))
    with flux_instance() as uri:
        broker = int(flux(uri, "getattr", "broker.pid"))
        instance = FluxInstance.attach(uri)
        instance.start()
        connection = instance.connect()
        killer = threading.Timer(delay, os.kill, (broker, signal.SIGKILL))
        killer.start()
        try:
            with pytest.raises(InstanceLost):
                for _ in range(10_000):
                    answers = connection.submit([request] * 8)
                    assert not [answer for answer in answers if isinstance(answer, Refusal)]
        finally:
            killer.join()
            connection.close()
            instance.close()
