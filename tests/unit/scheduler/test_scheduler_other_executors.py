"""Two or more executors in one instance: those with more than their share leave cores to those with less."""

import logging
import math

import pytest
from world import ALONE, Function, Simulation, running, shaped, slots, until_running

from parsl_flux_bulk.instances.base import Capacity, WorkerCores
from parsl_flux_bulk.scheduler.fair_share import QUANTUM
from parsl_flux_bulk.scheduler.messages import SubmitJob, Survey, UsageReported
from parsl_flux_bulk.scheduler.other_executors import EqualShare, equal_share
from parsl_flux_bulk.scheduler.states import WorkerJobState
from parsl_flux_bulk.scheduler.survey import SHARE_PERIOD

SHORT = Function(0.3)
BOUND = 8.0
"""Seconds within which all have their shares: a survey, the drain of workers, the start of others."""


def cores(world):
    """Cores that the worker jobs of an executor hold."""
    models = [m for m in world.jobs.values() if m.state in ("starting", "running")]
    return sum(model.job.allocation.cores for model in models)


def executors(count, *, nodes=1, per_node=8, **options):
    """So many executors in one instance; the first holds all cores, and has tasks for hours."""
    first = Simulation(nodes=nodes, cores=per_node, **options)
    first.submit(30_000, function=SHORT)
    first.run(until=lambda: cores(first) == nodes * per_node, for_=10.0)
    first.run(for_=5.0)
    assert cores(first) == nodes * per_node
    return [
        first,
        *(Simulation(nodes=nodes, cores=per_node, beside=first, **options) for _ in range(count - 1)),
    ]


def submitted(*worlds):
    return [world.counts[SubmitJob] for world in worlds]


def story(world):
    return "\n".join(map(str, world.scheduler.story(world.now, world.tasks[-1].task_id, world.tasks[-1])))


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (1, 8), (4, 8), (1, 5)])
def test_the_second_of_two_gets_half(nodes, per_node):
    first, second = executors(2, nodes=nodes, per_node=per_node)
    second.submit(30_000, function=SHORT)
    half = nodes * per_node // 2
    before = submitted(first)[0]
    first.run(until=lambda: cores(second) == half, for_=BOUND)
    first.run(for_=1.0)
    assert (cores(first), cores(second)) == (nodes * per_node - half, half)
    assert "worker jobs of other executors wait" in story(first)
    assert submitted(first)[0] - before <= 1
    # Neither takes anything from the other again.
    before = submitted(first, second)
    ended = len(first.outcomes), len(second.outcomes)
    first.run(for_=60.0)
    assert submitted(first, second) == before
    assert (cores(first), cores(second)) == (nodes * per_node - half, half)
    assert len(first.outcomes) > ended[0] and len(second.outcomes) > ended[1]


def test_three_executors_have_a_third_each():
    first, second, third = executors(3)
    second.submit(30_000, function=SHORT)
    first.run(for_=BOUND)
    third.submit(30_000, function=SHORT)
    first.run(for_=BOUND)
    assert sorted(map(cores, (first, second, third))) == [2, 3, 3]
    before = submitted(first, second, third)
    first.run(for_=60.0)
    assert submitted(first, second, third) == before


def test_an_executor_with_few_tasks_gets_a_core_for_each():
    first, second = executors(2)
    second.submit(1, function=Function(1000.0))
    until_running(second)
    first.run(for_=5.0)
    assert (cores(first), cores(second)) == (7, 1)
    third = Simulation(cores=8, beside=first)
    third.submit(30_000, function=SHORT)
    first.run(for_=BOUND)
    assert [*map(cores, (first, second, third))] == [4, 1, 3]


def test_cores_go_back_when_the_tasks_of_the_other_have_ended():
    first, second = executors(2)
    second.submit(100, function=SHORT)
    first.run(until=lambda: len(second.outcomes) == 100, for_=2 * BOUND)
    first.run(for_=6.0)
    assert (cores(first), cores(second)) == (8, 0)


def test_a_second_flood_after_a_pause():
    first, second = executors(2)
    for _ in range(3):
        second.submit(100, function=SHORT)
        first.run(until=lambda: len(second.outcomes) == len(second.tasks), for_=2 * BOUND)
        first.run(for_=10.0)
        assert cores(first) == 8


def test_more_tasks_for_workers_that_are_few_get_the_share():
    first, second = executors(2)
    second.submit(1, function=Function(1000.0))
    until_running(second)
    first.run(for_=5.0)
    second.submit(30_000, function=SHORT)
    first.run(for_=BOUND)
    assert (cores(first), cores(second)) == (4, 4)


def test_an_executor_that_was_idle_notices_others_too():
    first = Simulation(cores=8, worker_idle_time=math.inf)
    first.submit(8, function=SHORT)
    first.run(for_=60.0)
    first.submit(30_000, function=SHORT)
    first.run(for_=20.0)
    second = Simulation(cores=8, beside=first)
    second.submit(30_000, function=SHORT)
    first.run(for_=BOUND)
    assert (cores(first), cores(second)) == (4, 4)


def test_workers_with_long_tasks_are_not_waited_for():
    first = Simulation(cores=8)
    first.submit(4, function=Function(1000.0))
    first.run(for_=1.0)
    first.submit(4, function=SHORT)
    first.run(for_=1.0)
    first.submit(1_000, function=SHORT)
    first.run(for_=5.0)
    assert slots(first) == [4, 4]
    second = Simulation(cores=8, beside=first)
    second.submit(100, function=SHORT)
    first.run(until=lambda: running(second), for_=BOUND)


def test_running_tasks_end_and_none_is_lost_or_runs_twice():
    first = Simulation(cores=4)
    mine = first.submit(400, function=Function(0.5))
    first.run(for_=3.3)
    second = Simulation(cores=4, beside=first)
    second.submit(200, function=Function(0.5))
    first.run(until=lambda: len(first.outcomes) == 400 and len(second.outcomes) == 200)
    first.check_all_ended()
    second.check_all_ended()
    assert set(first.starts.values()) == {1} and first.starts.keys() == set(mine)
    assert first.now < 0.5 * 600 / 4 + 15.0


def test_a_job_of_another_program_gets_nothing_from_busy_workers():
    (first,) = executors(1)
    first.waiting_others = [5]
    before = submitted(first)
    first.run(for_=60.0)
    assert cores(first) == 8 and submitted(first) == before


def test_cores_of_other_programs_are_nobodys_share():
    first = Simulation(cores=8)
    first.occupy(0, 4)
    first.submit(30_000, function=SHORT)
    first.run(for_=3.0)
    second = Simulation(cores=8, beside=first)
    second.submit(30_000, function=SHORT)
    first.run(for_=BOUND)
    assert (cores(first), cores(second)) == (2, 2)


def test_an_executor_alone_drains_nothing_because_of_its_own_jobs():
    (first,) = executors(1)
    first.submit(100, shaped(2), SHORT)
    first.submit(20, ALONE, SHORT)
    first.run(for_=30.0)
    assert "other executors" not in story(first)


def test_no_more_workers_than_one_leave():
    first, second = executors(2, per_node=1)
    second.submit(10, function=SHORT)
    first.run(for_=30.0)
    assert (cores(first), cores(second)) == (1, 0)


def test_the_log_says_who_holds_the_cores(caplog):
    first, second = executors(2, per_node=1)
    second.submit(10, function=SHORT)
    with caplog.at_level(logging.WARNING, "parsl_flux_bulk"):
        first.run(for_=10.0)
    assert "other executors, which share by demand, hold 1 of these cores" in caplog.text


def test_a_worker_that_is_larger_than_the_share_ends_nothing():
    first, second = executors(2, per_node=2)
    second.submit(10, shaped(2), SHORT)
    before = submitted(first)
    first.run(for_=30.0)
    assert cores(first) == 2 and submitted(first) == before


def test_each_shape_keeps_the_workers_of_a_unit():
    first = Simulation(cores=2)
    first.submit(30_000, shaped(1), SHORT)
    first.submit(30_000, shaped(0.5), SHORT)
    first.run(for_=5.0)
    second = Simulation(cores=2, beside=first)
    second.submit(30_000, function=SHORT)
    before = submitted(first)
    first.run(for_=30.0)
    assert cores(first) == 2 and submitted(first) == before


def test_shapes_of_both_keep_a_worker_each():
    first = Simulation(cores=8)
    first.submit(30_000, shaped(1), SHORT)
    first.submit(30_000, shaped(2), SHORT)
    first.run(for_=5.0)
    second = Simulation(cores=8, beside=first)
    second.submit(30_000, shaped(1), SHORT)
    second.submit(30_000, shaped(2), SHORT)
    first.run(for_=2 * BOUND)
    assert (cores(first), cores(second)) == (4, 4)
    for world in (first, second):
        shapes = {
            slot.running.resources.shape for m in world.managers.values() for slot in m.slots if slot.running
        }
        assert len(shapes) == 2


def test_a_job_that_is_held_gets_its_cores_for_a_while_only():
    first, second = executors(2)
    submit = second.submitted
    second.submitted = lambda model: submit(model) if model.cancel else None
    second.submit(100, function=SHORT)
    first.run(for_=BOUND)
    assert cores(first) == 4
    first.run(for_=20.0)
    assert cores(first) == 8
    before = submitted(first)
    first.run(for_=60.0)
    assert submitted(first) == before


def test_wide_workers_on_several_nodes_and_those_with_gpus_end_none():
    for resources, nodes in (shaped(2), 2), (shaped(1, 1), 1):
        first, second = executors(2, nodes=nodes, per_node=8, gpus=1)
        second.submit(100, resources, SHORT)
        first.run(for_=30.0)
        assert cores(first) == 8 * nodes


def test_beside_task_jobs_of_one_both_go_on():
    first, second = executors(2, per_node=4)
    second.submit(30_000, function=SHORT)
    jobs = first.submit(1_000, ALONE, Function(0.2))
    for _ in range(4):
        ended = len(first.outcomes), len(second.outcomes), sum(job in first.outcomes for job in jobs)
        first.run(for_=BOUND)
        assert len(second.outcomes) > ended[1] + 10
        assert sum(job in first.outcomes for job in jobs) > ended[2] + 5


def test_surveys_of_a_busy_executor_are_few():
    (first,) = executors(1)
    before = first.counts[Survey]
    first.run(for_=100.0)
    assert 20 <= first.counts[Survey] - before <= 100.0 / SHARE_PERIOD + 1


def report(world, held, *wanted):
    """Let an executor know that another one holds and wants cores, and that none is free."""
    jobs = [model.job for model in world.jobs.values() if model.state == "running"]
    capacity = Capacity(1, world.node_cores, 0)
    executors = [WorkerCores(held, dict(enumerate(wanted)))]
    world.event(
        lambda scheduler: scheduler.handle(UsageReported(capacity, (), jobs, {}, executors=executors))
    )
    world.run(for_=0.001)


def test_a_worker_job_that_just_started_is_left_alone():
    world = Simulation(cores=8)
    world.submit(30_000, function=SHORT)
    until_running(world, 8)
    (job,) = world.worker_jobs()
    report(world, 0, 4)
    assert job.available
    world.run(for_=2 * QUANTUM)
    report(world, 0, 4)
    assert not job.available


def test_a_job_on_its_way_out_does_not_make_the_share_smaller():
    world = Simulation(cores=8)
    world.occupy(0, 4)
    world.submit(30_000, function=SHORT)
    world.run(for_=5.0)
    report(world, 4)
    before = submitted(world)
    report(world, 2, 1)  # two cores of the other are neither its own any more, nor free
    assert all(job.available for job in world.worker_jobs() if job.result is None)
    assert submitted(world) == before


def test_each_part_of_an_instance_has_its_own_shares():
    world = Simulation(nodes=2, cores=4)
    world.submit(30_000, function=SHORT)
    world.run(for_=5.0)
    one, other = [model for model in world.jobs.values() if model.state == "running"]
    capacity = Capacity(1, 4, 0)

    waits = [WorkerCores(0, {5: 2})]
    for report in (
        UsageReported(capacity, (), [one.job], {}, scope=1, executors=waits),
        UsageReported(capacity, (), [other.job], {}, scope=2),
    ):
        world.event(lambda scheduler, report=report: scheduler.handle(report))
    world.run(for_=0.1)
    assert not one.job.available and other.job.state is WorkerJobState.SERVING
    assert slots(world) == [4, 4, 2], "a smaller job takes its place"


@pytest.mark.parametrize(
    ("pool", "free", "held", "others", "expected"),
    [
        (8, 0, 8, [(0, [4])], EqualShare(4, 4, 0)),
        (8, 0, 8, [(0, [1])], EqualShare(7, 1, 0)),
        (8, 0, 8, [(0, [8])], EqualShare(8, 0, 0)),  # it never starts while this executor has its share
        (8, 0, 4, [(4, [4])], EqualShare(4, 0, 0)),
        (8, 0, 0, [(8, [])], EqualShare(4, 0, 4)),
        (8, 0, 4, [(4, []), (0, [2])], EqualShare(3, 1, 0)),
        (8, 0, 7, [(1, [])], EqualShare(7, 0, 0)),
        (8, 0, 3, [(1, []), (4, [])], EqualShare(4, 0, 0)),
        (3, 0, 3, [(0, [1])], EqualShare(2, 1, 0)),
        (2, 0, 2, [(0, [2])], EqualShare(2, 0, 0)),
        (100, 0, 45, [(55, [])], EqualShare(50, 0, 0)),  # a little less than the share
    ],
)
def test_shares(pool, free, held, others, expected):
    cores = [WorkerCores(held, dict(enumerate(wanted))) for held, wanted in others]
    assert equal_share(pool, free, held, cores) == expected
