"""Python apps with a walltime, in warm workers and as jobs."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apps
import pytest
from parsl.app.errors import AppTimeout, wrap_error
from parsl.app.python import timeout
from specifications import BAD_NUMBERS, BAD_SECONDS

from parsl_flux_bulk import FluxBulkExecutor

BOUND = 60.0


def limited(executor: FluxBulkExecutor, seconds: Any, *args: Any) -> Future[Any]:
    """Submit a call as Parsl does for an app with a walltime."""
    return executor.submit(timeout(wrap_error(apps.hold), seconds), {}, *args)


@pytest.mark.parametrize("how", ["sleep", "gil"])
def test_a_call_that_is_stuck_ends_with_its_walltime(executor: FluxBulkExecutor, how: str) -> None:
    assert executor.submit(apps.double, {}, 1).result(BOUND) == 2  # a worker has started
    began = time.monotonic()
    stuck = limited(executor, 1, how, 60)
    others = [executor.submit(apps.double, {}, number) for number in range(4)]
    error = stuck.exception(BOUND)
    assert time.monotonic() - began < 60, "the call was ended, and not waited for"
    assert type(error) is AppTimeout
    assert str(error) == "App hold exceeded walltime: 1.0 seconds"
    assert any("job " in note for note in getattr(error, "__notes__", ["job "]))
    assert [other.result(BOUND) for other in others] == [0, 2, 4, 6]


def test_python_code_is_interrupted_and_cleans_up(executor: FluxBulkExecutor, tmp_path: Path) -> None:
    note = tmp_path / "note"
    assert type(limited(executor, 0.5, "loop", 60, str(note)).exception(BOUND)) is AppTimeout
    assert note.read_text() == "cleaned up"


def test_a_call_that_ends_late_but_by_itself_is_too_late(executor: FluxBulkExecutor) -> None:
    assert type(limited(executor, 0.3, "sleep", 0.8).exception(BOUND)) is AppTimeout


@pytest.mark.parametrize("seconds", [20, 1e9])
def test_a_walltime_that_is_enough(executor: FluxBulkExecutor, seconds: float) -> None:
    assert limited(executor, seconds, "sleep", 0.1).result(BOUND) == "sleep"


def test_no_time_at_all(executor: FluxBulkExecutor) -> None:
    assert type(limited(executor, 0, "sleep", 0.5).exception(BOUND)) is AppTimeout


@pytest.mark.parametrize("seconds", BAD_NUMBERS)
def test_an_idle_time_that_is_no_number(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"worker_idle_time must be a number of seconds, from 0 to .*, not "):
        FluxBulkExecutor(worker_idle_time=seconds)


@pytest.mark.parametrize("seconds", BAD_SECONDS)
def test_a_walltime_that_is_no_number(executor: FluxBulkExecutor, seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"walltime must be a number of seconds, from 0 to .*, not "):
        limited(executor, seconds, "sleep", 0)
