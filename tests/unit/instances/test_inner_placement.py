"""How an instance is shared out, and which jobs its inner instances get; the inner ones are made up."""

from __future__ import annotations

import pytest
from test_federation import FakeInstance, request

from parsl_flux_bulk.instances.base import Capacity, JobEnded, JobRequest, JobResult, JobStatus, Refusal
from parsl_flux_bulk.instances.federation import inner
from parsl_flux_bulk.instances.federation.inner import (
    InnerInstances,
    InstanceLauncher,
    automatic,
    divide,
    nest,
)
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.instances.local.client import LocalInstance


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


def test_how_many_are_worth_while(monkeypatch: pytest.MonkeyPatch) -> None:
    own = FluxInstance.own()
    assert [automatic(own, jobs) for jobs in (1, 199, 200, 1025, 10**6)] == [0, 1, 2, 10, 16]
    assert automatic(FluxInstance.attach("local:///x"), 10**6) == 0
    assert automatic(LocalInstance(), 10**6) == 0


def test_only_flux_has_instances_inside() -> None:
    local = LocalInstance()
    assert nest(local, 1) is local
    with pytest.raises(ValueError, match="instances=2 needs Flux"):
        nest(local, 2)


class FakeLauncher:
    """Stands in for what starts and ends inner instances."""

    def __init__(self) -> None:
        self.retired: list[str] = []

    def retire(self, name: str) -> None:
        self.retired.append(name)

    def stop(self) -> None:
        pass

    def enough(self) -> None:
        pass


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    """An outer instance of four cores, two inner ones of two, and a connection to all."""
    monkeypatch.setattr(inner, "divide", lambda capacity, most: [])
    outer, a, b = FakeInstance(4), FakeInstance(2), FakeInstance(2)
    instances = InnerInstances(outer, 2)  # type: ignore[arg-type]
    instances.start()
    instances._launcher = FakeLauncher()  # type: ignore[assignment]
    instances.add("a", a)
    instances.add("b", b)
    return instances, instances.connect(), (outer, a, b)


def counts(instances) -> list[int]:
    return [len(instance.requests) for instance in instances]


def test_small_jobs_go_inside_and_are_spread(made) -> None:
    federation, connection, there = made
    ids = connection.submit([request() for _ in range(8)])
    assert counts(there) == [0, 4, 4]
    assert len(set(ids)) == 8
    assert federation.total() == Capacity(1, 4, 0)  # the inner ones' cores are the outer one's


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
def test_what_does_not_fit_dissolves_them(made, misfit: JobRequest) -> None:
    federation, connection, there = made
    first = connection.submit([request(), request(), request()])
    connection.submit([misfit, request()])
    assert counts(there) == [2, 2, 1]
    assert federation._launcher.retired == []  # they still have work
    for job_id in first:
        federation.job_ended(federation.member_of(job_id), job_id & (2**64 - 1))
    assert sorted(federation._launcher.retired) == ["a", "b"]


def test_one_with_a_job_on_its_way_is_not_ended(made) -> None:
    federation, connection, there = made
    ids = connection.submit([request(), request(cores=3)])  # one batch
    assert counts(there) == [1, 1, 0] or counts(there) == [1, 0, 1]
    busy = federation.member_of(ids[0])
    assert federation._launcher.retired == [{"a": "b", "b": "a"}[busy.name]]
    federation.job_ended(busy, ids[0] & (2**64 - 1))
    assert sorted(federation._launcher.retired) == ["a", "b"]


def test_a_refusal_can_be_the_end_of_one(made) -> None:
    federation, connection, _ = made
    connection.submit([request(note="refuse"), request(cores=3)])
    assert sorted(federation._launcher.retired) == ["a", "b"]


def test_one_that_comes_late_is_not_used(made) -> None:
    federation, connection, there = made
    connection.submit([request(cores=3)])
    late = FakeInstance(2)
    federation.add_inner("late", late)  # type: ignore[arg-type]
    connection.submit([request()])
    assert counts([*there, late]) == [2, 0, 0, 0]
    assert "late" in federation._launcher.retired


@pytest.fixture
def forkserver(made):
    """One that has started the two inner instances as jobs 1 and 2."""
    federation, _, (outer, *_) = made
    forkserver = InstanceLauncher(federation, outer, [])
    for name, member in zip("ab", federation.members[1:], strict=True):
        forkserver._members[name], forkserver._up[name] = member, f"keeper of {name}"
    return forkserver


def test_one_whose_keeper_is_gone_gets_no_more_jobs(made, forkserver: InstanceLauncher) -> None:
    _, connection, there = made
    forkserver._ending("keeper of a")
    connection.submit([request() for _ in range(4)])
    assert counts(there) == [0, 0, 4]


def test_one_whose_job_has_ended_is_gone(made, forkserver: InstanceLauncher) -> None:
    """Though a broken connection to another node may not tell."""
    federation, connection, there = made
    forkserver._ended("a", JobEnded(1, JobResult(JobStatus.FAILED, exit_code=1)))
    assert [member.name for member in federation.members] == ["outside", "b"]
    connection.submit([request() for _ in range(4)])
    assert counts(there) == [0, 0, 4]


def test_what_fits_nowhere_is_refused_and_changes_nothing(made) -> None:
    _, connection, there = made
    (answer,) = connection.submit([request(cores=10_000)])
    assert isinstance(answer, Refusal) and "4 core(s)" in answer.reason
    connection.submit([request()])
    assert counts(there) == [0, 1, 0]


def test_without_inner_instances_the_outer_one_does_it_all(made) -> None:
    federation, connection, there = made
    for member in federation.members[1:]:
        federation.remove(member, "it died")
    connection.submit([request()])
    assert counts(there) == [1, 0, 0]
