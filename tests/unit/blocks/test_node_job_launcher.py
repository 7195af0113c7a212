"""How long jobs wait for node jobs; the outer instance is a fake."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import helpers
import pytest
from fake_instance import FakeCompletion, FakeConnection, FakeInstance

from parsl_flux_bulk.blocks.packed import node_job_launcher
from parsl_flux_bulk.blocks.packed.node_job_launcher import NodeJobLauncher
from parsl_flux_bulk.instances.base import JobEnded, JobResult, JobStatus, Usage

BOUND = 60.0
FAILED = JobResult(JobStatus.FAILED, exit_code=1)


class Outer(FakeInstance):
    """Two nodes with free cores, in which no job starts."""

    def __init__(self) -> None:
        super().__init__(2, nodes=2)
        self.waiting: set[int] = set()
        self.surveys = 0

    def connect(self, *, guarded: bool = True) -> FakeConnection:
        return FakeConnection(self)

    def completion(self) -> FakeCompletion:
        return Completion(self)


class Completion(FakeCompletion):
    def survey(self) -> None:
        outer = self.instance
        outer.surveys += 1
        outer.tell(Usage(outer.size, ((2, 0), (2, 0)), dict.fromkeys(outer.waiting, ""), 0))


class Bench:
    def __init__(self) -> None:
        self.outer = Outer()
        self.launcher = NodeJobLauncher(self.outer, None, None)  # type: ignore[arg-type]
        self.starter = threading.Thread(target=self._start_and_wait)

    def _start_and_wait(self) -> None:
        self.launcher.start()
        assert len(self.outer.requests) == 2, "the start ends when the node jobs are submitted"
        self.launcher.wait()

    def start(self) -> None:
        """Start and wait in a thread, until two node jobs are submitted."""
        self.starter.start()
        helpers.wait_until(lambda: len(self.outer.requests) == 2, BOUND)

    def wait_surveys(self) -> None:
        """Wait until the answer to a survey that was asked from now on has been read."""
        seen = self.outer.surveys
        helpers.wait_until(lambda: self.outer.surveys >= seen + 3, BOUND)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(node_job_launcher, "QUEUE_TIMEOUT", 0.02)
    monkeypatch.setattr(node_job_launcher, "START_TIMEOUT", 10 * BOUND)
    bench = Bench()
    yield bench
    bench.launcher.stop()
    bench.starter.join(BOUND)


def test_no_job_waits_for_node_jobs_that_wait_for_cores(bench: Bench) -> None:
    bench.outer.waiting = {1, 2}
    bench.start()
    bench.starter.join(BOUND)
    assert not bench.starter.is_alive() and bench.launcher.queued


def test_jobs_wait_while_a_node_job_starts(bench: Bench) -> None:
    bench.outer.waiting = {2}
    bench.start()
    bench.wait_surveys()
    assert bench.starter.is_alive() and not bench.launcher.queued
    bench.outer.tell(JobEnded(1, FAILED))
    bench.starter.join(BOUND)
    assert not bench.starter.is_alive() and bench.launcher.queued


def test_none_is_queued_any_more_when_all_have_ended(bench: Bench) -> None:
    bench.outer.waiting = {1, 2}
    bench.start()
    bench.starter.join(BOUND)
    bench.outer.tell(JobEnded(1, FAILED), JobEnded(2, FAILED))
    helpers.wait_until(lambda: not bench.launcher.queued, BOUND)


def test_those_that_wait_are_canceled_when_they_are_not_needed(bench: Bench) -> None:
    bench.outer.waiting = {1, 2}
    bench.start()
    bench.starter.join(BOUND)
    bench.launcher.cancel_late()
    helpers.wait_until(lambda: sorted(bench.outer.canceled) == [1, 2], BOUND)
