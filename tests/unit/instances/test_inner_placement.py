"""How an instance is divided, and which jobs its inner instances get; the instances are fakes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import helpers
import pytest
from test_federation import FakeCompletion, FakeConnection, FakeInstance, request

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    Capacity,
    CapacityChanged,
    JobEnded,
    JobRequest,
    JobResult,
    JobStatus,
    PeerLost,
    PeerMessage,
    Refusal,
)
from parsl_flux_bulk.instances.federation.inner_instance_launcher import InstanceLauncher
from parsl_flux_bulk.instances.federation.inner_instances import InnerInstances, nest
from parsl_flux_bulk.instances.federation.placement import divide
from parsl_flux_bulk.instances.local.client import LocalInstance
from parsl_flux_bulk.protocol import frames

BOUND = 60.0
DONE = JobResult(JobStatus.COMPLETED, exit_code=0)
RETIRE = frames.encode(frames.RETIRE)


@pytest.mark.parametrize(
    ("nodes", "cores", "most", "shares"),
    [
        (1, 2, 2, [(1, 1), (1, 1)]),
        (1, 2, 16, [(1, 1), (1, 1)]),  # no more than cores
        (1, 7, 3, [(1, 3), (1, 2), (1, 2)]),
        (1, 8, 1, [(1, 8)]),
        (4, 2, 4, [(1, 2)] * 4),
        (4, 2, 8, [(1, 1)] * 8),
        (4, 2, 7, [(1, 2)] * 4),  # as many on each node
        (5, 2, 2, [(3, 2), (2, 2)]),
        (3, 2, 1, [(3, 2)]),
    ],
)
def test_shares(nodes: int, cores: int, most: int, shares: list[tuple[int, int]]) -> None:
    assert divide(Capacity(nodes, nodes * cores, 0), most) == shares


def test_only_flux_has_instances_inside() -> None:
    local = LocalInstance()
    assert nest(local, 1) is local
    with pytest.raises(ValueError, match="instances=2 needs Flux"):
        nest(local, 2)


class Outer(FakeInstance):
    """An outer instance of four cores, in which each inner instance is ready when its job is submitted.

    The first two jobs are those of the inner instances.
    """

    def __init__(self) -> None:
        super().__init__(4)
        self.late = False
        self.launched = FakeInstance()
        """The side that the launcher's completion sees."""

    def connect(self, *, guarded: bool = True) -> FakeConnection:
        return OuterConnection(self)

    def completion(self) -> FakeCompletion:
        launcher = isinstance(threading.current_thread(), InstanceLauncher)
        return FakeCompletion(self.launched if launcher else self)

    def say_hello(self, job_id: int) -> None:
        payload = json.dumps({"node": f"local:///{job_id}", "host": "here"}).encode()
        self.launched.tell(PeerMessage(job_id, frames.encode(frames.HELLO, 0, job_id - 1, payload)))

    @property
    def retired(self) -> list[int]:
        return sorted(peer for peer, body in self.launched.sent if body == RETIRE)


class OuterConnection(FakeConnection):
    def submit(self, requests: list[JobRequest]) -> list[int | Refusal]:
        answers = super().submit(requests)
        for answer in answers:
            if not isinstance(answer, Refusal) and answer <= 2 and not self.instance.late:
                self.instance.say_hello(answer)
        return answers


class Bench:
    """An outer instance of four cores, two inner ones of two, and a connection and a completion of all."""

    def __init__(self, *, late: bool = False) -> None:
        self.outer = Outer()
        self.outer.late = late
        self.a, self.b = FakeInstance(2), FakeInstance(2)
        inner = {"local:///1": self.a, "local:///2": self.b}
        self.nested = InnerInstances(self.outer, 2, lambda uri, host: inner[uri])  # type: ignore[arg-type]

    def start(self) -> None:
        self.nested.start()
        self.connection, self.completion = self.nested.connect(), self.nested.completion()

    def counts(self) -> list[int]:
        """Jobs of the user's in the outer instance and in the inner ones."""
        return [len(self.outer.requests) - 2, len(self.a.requests), len(self.b.requests)]

    def submit(self, *requests: JobRequest) -> list[int]:
        answers = self.connection.submit(list(requests))
        for answer in answers:
            self.completion.watch(answer)
        return answers

    def end(self, *instances: FakeInstance) -> None:
        """End all jobs of instances."""
        for instance in instances:
            instance.tell(*(JobEnded(job_id, DONE) for job_id in instance.requests))

    def wait_retired(self, *job_ids: int) -> None:
        helpers.wait_until(lambda: self.outer.retired == list(job_ids), BOUND, f"{job_ids} are told to end")

    def close(self) -> None:
        self.outer.launched.tell(JobEnded(1, DONE), JobEnded(2, DONE))
        self.completion.close()
        self.nested.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.start()
    yield bench
    bench.close()


def test_small_jobs_go_inside_and_are_spread(bench: Bench) -> None:
    ids = bench.submit(*(request() for _ in range(8)))
    assert bench.counts() == [0, 4, 4]
    assert len(set(ids)) == 8
    assert bench.connection.capacity() == Capacity(1, 4, 0)  # includes the inner ones' cores


def particular(**system: object) -> JobRequest:
    jobspec = request().jobspec
    jobspec.system.update(system)
    return JobRequest(jobspec)


@pytest.mark.parametrize(
    "misfit",
    [
        request(cores=3),
        particular(queue="debug"),
        particular(dependencies=[{"scheme": "afterok", "value": "f1"}]),
    ],
    ids=["large", "queue", "dependency"],
)
def test_what_does_not_fit_dissolves_them(bench: Bench, misfit: JobRequest) -> None:
    bench.submit(request(), request(), request())
    bench.submit(misfit, request())
    assert bench.counts() == [2, 2, 1]
    assert bench.outer.retired == []  # they have jobs
    bench.end(bench.a, bench.b)
    bench.wait_retired(1, 2)


def test_one_with_a_job_being_submitted_is_not_ended(bench: Bench) -> None:
    bench.submit(request(), request(cores=3))  # one batch
    assert bench.counts() in ([1, 1, 0], [1, 0, 1])
    busy, idle = (bench.a, 2) if bench.a.requests else (bench.b, 1)
    bench.wait_retired(idle)
    bench.end(busy)
    bench.wait_retired(1, 2)


def test_a_refusal_can_be_the_end_of_one(bench: Bench) -> None:
    bench.connection.submit([request(note="refuse"), request(cores=3)])
    bench.wait_retired(1, 2)


def test_those_that_are_late_are_canceled_at_the_first_misfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parsl_flux_bulk.instances.federation.inner_instance_launcher.START_TIMEOUT", 0.05)
    bench = Bench(late=True)
    bench.start()
    bench.outer.say_hello(1)
    # The first change of capacity since `bench.start`: one is ready after all.
    assert [type(event) for event in bench.completion.poll(BOUND)] == [CapacityChanged]
    assert "1 inner instances" in bench.nested.description
    bench.submit(request())
    assert bench.counts() == [0, 1, 0]
    bench.submit(request(cores=3))
    helpers.wait_until(lambda: bench.outer.canceled == [2], BOUND, "the other is canceled")
    bench.outer.say_hello(2)
    bench.submit(request())
    assert bench.counts() == [2, 1, 0]
    bench.close()


def test_one_whose_initial_program_ended_gets_no_more_jobs(bench: Bench) -> None:
    bench.outer.launched.tell(PeerLost(1))
    bench.wait_retired(1)
    bench.submit(*(request() for _ in range(4)))
    assert bench.counts() == [0, 0, 4]


def test_one_whose_job_has_ended_is_removed(bench: Bench) -> None:
    """Although its own connection has not failed."""
    bench.outer.launched.tell(JobEnded(1, JobResult(JobStatus.FAILED, exit_code=1)))
    helpers.wait_until(lambda: bench.a.closed, BOUND, "it is removed")
    bench.submit(*(request() for _ in range(4)))
    assert bench.counts() == [0, 0, 4]


def test_what_fits_nowhere_is_refused_and_changes_nothing(bench: Bench) -> None:
    (answer,) = bench.connection.submit([request(cores=10_000)])
    assert isinstance(answer, Refusal) and "4 core(s)" in answer.reason
    bench.submit(request())
    assert bench.counts() == [0, 1, 0]


def test_without_inner_instances_the_outer_one_gets_all_jobs(bench: Bench) -> None:
    for inner in (bench.a, bench.b):
        inner.lose()
    helpers.wait_until(lambda: bench.a.closed and bench.b.closed, BOUND, "both are removed")
    bench.submit(request())
    assert bench.counts() == [1, 0, 0]


def test_nothing_can_be_submitted_without_the_outer_one(bench: Bench) -> None:
    bench.outer.lose()
    helpers.wait_until(lambda: bench.outer.closed, BOUND, "it is removed")
    with pytest.raises(InstanceLost, match="its host died"):
        bench.submit(request())
