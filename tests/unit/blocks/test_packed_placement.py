"""Which jobs node jobs get, and when they end; the instances and the launcher are fakes."""

from __future__ import annotations

from collections.abc import Callable

import helpers
import pytest
from fake_instance import FakeInstance, request

from parsl_flux_bulk.blocks.packed import packed_jobs
from parsl_flux_bulk.blocks.packed.packed_jobs import PackedJobs
from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import Capacity, JobEnded, JobRequest, JobResult, JobStatus, Refusal
from parsl_flux_bulk.instances.federation.members import Member

BOUND = 60.0
DONE = JobResult(JobStatus.COMPLETED, exit_code=0)


class Launcher:
    """Starts node jobs when the test says so."""

    def __init__(self, outer: object, add: Callable[[str, FakeInstance], Member], *_: object) -> None:
        self.add = add
        self.queued = False
        self.joined = 0
        self.late_canceled = False
        self.retired: set[str] = set()

    def start(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def launch(self, timeout: float, cores_needed: int | None) -> None:
        pass

    def cancel_late(self) -> None:
        self.late_canceled = True

    def retire(self, name: str) -> None:
        self.retired.add(name)

    def idle(self, member: Member) -> None:
        pass


class Bench:
    """An outer instance of four cores, node jobs of two, and a connection and a completion of all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launchers: list[Launcher] = []

        def launcher(*arguments: object) -> Launcher:
            launchers.append(Launcher(*arguments))  # type: ignore[arg-type]
            return launchers[-1]

        monkeypatch.setattr(packed_jobs, "NodeJobLauncher", launcher)
        self.outer, self.a, self.b = FakeInstance(4), FakeInstance(2), FakeInstance(2)
        self.packed = PackedJobs(self.outer)  # type: ignore[arg-type]
        self.packed.start()
        (self.launcher,) = launchers
        self.connection, self.completion = self.packed.connect(), self.packed.completion()

    def add(self) -> Bench:
        """Have both node jobs."""
        self.launcher.add("a", self.a)
        self.launcher.add("b", self.b)
        return self

    def counts(self) -> list[int]:
        """Jobs in the outer instance and in the node jobs."""
        return [len(instance.requests) for instance in (self.outer, self.a, self.b)]

    def submit(self, *requests: JobRequest) -> list[int]:
        answers = self.connection.submit(list(requests))
        for answer in answers:
            self.completion.watch(answer)
        return answers

    def end(self, *instances: FakeInstance) -> None:
        """End all jobs of instances."""
        for instance in instances:
            instance.tell(*(JobEnded(job_id, DONE) for job_id in instance.requests))

    def wait_retired(self, *names: str) -> None:
        helpers.wait_until(lambda: self.launcher.retired == set(names), BOUND, f"{names} are told to end")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    bench = Bench(monkeypatch)
    yield bench
    bench.completion.close()
    bench.packed.close()


def test_small_jobs_go_inside_and_are_spread(bench: Bench) -> None:
    ids = bench.add().submit(*(request() for _ in range(8)))
    assert bench.counts() == [0, 4, 4]
    assert len(set(ids)) == 8
    assert bench.connection.capacity() == Capacity(1, 4, 0)  # includes the node jobs' cores


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
    bench.add().submit(request(), request(), request())
    bench.submit(misfit, request())
    assert bench.counts() == [2, 2, 1]
    assert bench.launcher.retired == set()  # they have jobs
    assert bench.launcher.late_canceled
    bench.end(bench.a, bench.b)
    bench.wait_retired("a", "b")


def test_one_with_a_job_being_submitted_is_not_ended(bench: Bench) -> None:
    bench.add().submit(request(), request(cores=3))  # one batch
    assert bench.counts() in ([1, 1, 0], [1, 0, 1])
    busy, idle = (bench.a, "b") if bench.a.requests else (bench.b, "a")
    bench.wait_retired(idle)
    bench.end(busy)
    bench.wait_retired("a", "b")


def test_a_refusal_can_be_the_end_of_one(bench: Bench) -> None:
    bench.add().connection.submit([request(note="refuse"), request(cores=3)])
    bench.wait_retired("a", "b")


def test_one_that_is_ready_after_the_first_misfit_gets_no_jobs(bench: Bench) -> None:
    bench.submit(request(cores=3))
    bench.add().submit(request())
    assert bench.counts() == [2, 0, 0]
    bench.wait_retired("a", "b")


def test_while_all_wait_for_cores_the_outer_one_gets_jobs(bench: Bench) -> None:
    bench.launcher.queued = True
    bench.submit(request(), request())
    assert bench.counts() == [2, 0, 0]
    bench.launcher.queued = False
    bench.add().submit(*(request() for _ in range(4)))
    assert bench.counts() == [2, 2, 2]


def test_one_that_waits_for_cores_does_not_keep_the_others_from_being_dissolved(bench: Bench) -> None:
    bench.launcher.queued = True
    bench.launcher.add("a", bench.a)
    bench.submit(request(), request(cores=3))
    assert bench.counts() == [1, 1, 0] and bench.launcher.late_canceled


def test_what_fits_nowhere_is_refused_and_changes_nothing(bench: Bench) -> None:
    (answer,) = bench.add().connection.submit([request(cores=10_000)])
    assert isinstance(answer, Refusal) and "4 core(s)" in answer.reason
    bench.submit(request())
    assert bench.counts() == [0, 1, 0]


def test_without_node_jobs_the_outer_one_gets_all_jobs(bench: Bench) -> None:
    bench.add()
    for instance in (bench.a, bench.b):
        instance.lose()
    helpers.wait_until(lambda: bench.a.closed and bench.b.closed, BOUND, "both are removed")
    bench.submit(request())
    assert bench.counts() == [1, 0, 0]


def test_nothing_can_be_submitted_without_the_outer_one(bench: Bench) -> None:
    bench.add().outer.lose()
    helpers.wait_until(lambda: bench.outer.closed, BOUND, "it is removed")
    with pytest.raises(InstanceLost, match="its host died"):
        bench.submit(request())
