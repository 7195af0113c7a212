"""Two executors with more tasks than cores in one Flux instance: each gets its share of the cores."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import apps
import helpers
import pytest

from parsl_flux_bulk import FluxBulkExecutor

pytestmark = pytest.mark.flux

BOUND = 60.0
CORES = len(os.sched_getaffinity(0))
AHEAD = 50
"""Tasks that wait or run, at any time before the flood stops."""

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


@pytest.fixture
def uri() -> Iterator[str]:
    """An instance for one test alone."""
    with helpers.flux_instance() as uri:
        yield uri


class Flood:
    """Tasks that never run out, until `stop` is called."""

    def __init__(self, executor: FluxBulkExecutor, ran: Path) -> None:
        self.futures: list[Future[int]] = []
        self.ended = 0
        self._executor = executor
        self._ran = ran
        self._lock = threading.Lock()
        self._stopped = False
        for _ in range(AHEAD):
            self._submit()

    def _submit(self) -> None:
        with self._lock:
            if self._stopped:
                return
            future = self._executor.submit(apps.mark_number, {}, str(self._ran), len(self.futures), 0.1)
            self.futures.append(future)
        future.add_done_callback(self._on_done)

    def _on_done(self, _: Future[int]) -> None:
        self.ended += 1
        self._submit()

    def goes_on(self) -> None:
        """Wait until more tasks have ended."""
        before = self.ended
        helpers.wait_until(lambda: self.ended >= before + 5, BOUND, "more tasks end")

    def stop(self) -> None:
        """Submit no more; wait until all have ended, and each has run once."""
        with self._lock:
            self._stopped = True
        numbers = range(len(self.futures))
        assert [future.result(BOUND) for future in self.futures] == list(numbers)
        ran = Counter(int(line.split()[0]) for line in self._ran.read_text().splitlines())
        assert ran == Counter(numbers)


def workers(executor: FluxBulkExecutor) -> int:
    return sum(manager["worker_count"] for manager in executor.connected_managers())


@pytest.mark.skipif(CORES < 2, reason="one core cannot be shared")
def test_the_second_executor_gets_half_of_the_cores_and_gives_them_back(
    new_executor: NewExecutor, uri: str, tmp_path: Path
) -> None:
    with new_executor(uri, label="first") as first, new_executor(uri, label="second") as second:
        one = Flood(first, tmp_path / "one")
        helpers.wait_until(lambda: workers(first) == CORES, BOUND, "the first has all cores")
        two = Flood(second, tmp_path / "two")
        helpers.wait_until(lambda: two.ended, BOUND, "a task of the second ends")
        assert not all(future.done() for future in one.futures)
        helpers.wait_until(
            lambda: (workers(first), workers(second)) == (CORES - CORES // 2, CORES // 2), BOUND, "halves"
        )
        one.goes_on()
        two.goes_on()
        story = "\n".join(map(str, first.story(one.futures[-1])))
        assert "worker jobs of other executors wait" in story
        two.stop()
        helpers.wait_until(lambda: workers(first) == CORES, BOUND, "the first has all cores again")
        one.stop()
