"""Others in the same instance: what is free counts, not what is up; and what waits says why."""

import logging
import math

import pytest
from world import ALONE, SMALL, TWO_RANKS, Function, Simulation, shaped, slots, until_running

from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.scheduler import survey
from parsl_flux_bulk.scheduler.messages import CapacityChanged, SubmitJob, Survey

LONG = Function(1000.0)


def ended_by(world, seconds):
    """How many tasks have ended after so many seconds."""
    world.run(for_=seconds)
    return len(world.outcomes)


def story_of(world, task):
    return "\n".join(map(str, world.scheduler.story(world.now, task.task_id, task)))


@pytest.mark.parametrize("held", [1, 3, 7])
def test_workers_start_on_what_is_free_at_once(held):
    world = Simulation(cores=8)
    world.run(for_=0.01)
    world.occupy(0, held)
    world.submit(8, function=LONG)
    until_running(world, 8 - held)
    assert world.now < 1.0
    assert world.cores_in_use() == 8


def test_what_is_held_before_the_executor_starts_costs_no_detour():
    world = Simulation(cores=8)
    world.occupy(0, 5)
    world.run(for_=1.0)
    world.submit(8, function=LONG)
    until_running(world, 3)
    assert slots(world) == [3]


def test_room_that_appears_is_used():
    world = Simulation(cores=8)
    world.occupy(0, 6)
    world.submit(100, function=Function(2.0))
    until_running(world, 2)
    world.release(0, 6)
    world.run(for_=3.0)
    assert world.cores_in_use() == 8
    world.run_all()


def test_without_any_room_one_worker_waits_inside_and_starts_first():
    world = Simulation(cores=4)
    world.occupy(0, 4)
    world.submit(10, function=Function(0.5))
    assert ended_by(world, 20.0) == 0
    assert [model.job.slots for model in world.pending()] == [1]
    assert world.counts[SubmitJob] <= 3
    world.release(0, 1)
    world.run(for_=0.2)
    assert world.cores_in_use() == 4
    world.run_all()


def test_free_cores_spread_over_nodes_hold_no_wide_worker():
    world = Simulation(nodes=3, cores=4)
    for node in range(2):
        world.occupy(node, 3)
    world.submit(6, shaped(2), LONG)
    until_running(world, 2)
    world.run(for_=30.0)
    assert world.counts[SubmitJob] <= 4, "no job is replaced again and again"
    world.release(0, 3)
    world.run(for_=3.0)
    until_running(world, 4)


def test_gpus_of_others():
    world = Simulation(nodes=1, cores=8, gpus=4)
    world.free[0][1] -= 3
    world.submit(4, shaped(1, 1), Function(0.3))
    world.run_all()
    assert world.now < 5.0


def test_two_shapes_and_task_jobs_beside_others_all_end():
    world = Simulation(nodes=2, cores=4)
    world.occupy(0, 3)
    world.occupy(1, 2)
    world.submit(20, function=Function(0.1))
    world.submit(10, shaped(2), Function(0.1))
    world.submit(5, ALONE, Function(0.1))
    world.run_all()
    assert world.now < 30.0


def test_nodes_that_come_up_are_used():
    world = Simulation(nodes=2, cores=4)
    world.drain_node()
    world.scheduler.handle(CapacityChanged(Capacity(1, 4, 0)))
    world.submit(100, function=Function(10.0))
    until_running(world, 4)
    world.undrain_node()
    world.run(for_=11.0)
    assert world.cores_in_use() == 8


def test_a_node_that_is_drained_beside_a_running_worker():
    world = Simulation(nodes=2, cores=2)
    world.submit(1, function=LONG)
    until_running(world, 1)
    world.drain_node()
    world.submit(8, function=LONG)
    # Two workers were asked for, and only one fits beside the first.
    until_running(world, 2)
    assert world.now < 5.0
    world.undrain_node()
    world.run(for_=10.0)
    assert world.cores_in_use() == 4


def test_without_others_nothing_is_asked_again_and_again():
    world = Simulation(cores=1)
    world.submit(1, function=LONG)
    world.submit(50)
    world.run(for_=100.0)
    assert world.counts[Survey] <= 4


# -- idle workers, and others that wait --------------------------------------------------------------


def idle_jobs(world):
    """Let workers run a task each, and return when the last is done."""
    world.submit(2, function=Function(1.0))
    world.run(until=lambda: len(world.outcomes) == 2)


@pytest.mark.parametrize("idle_time", [5.0, math.inf])
def test_idle_workers_end_at_once_for_jobs_of_others(idle_time):
    world = Simulation(cores=2, worker_idle_time=idle_time)
    world.waiting_others = [77]
    idle_jobs(world)
    world.run(for_=0.3)
    assert world.cores_in_use() == 0


@pytest.mark.parametrize("idle_time", [5.0, math.inf])
def test_idle_workers_end_soon_for_a_job_that_comes_later(idle_time):
    world = Simulation(cores=2, worker_idle_time=idle_time)
    idle_jobs(world)
    world.run(for_=1.0)
    assert world.cores_in_use() == 2
    world.waiting_others = [77]
    world.run(for_=1.0)
    assert world.cores_in_use() == 0


def test_a_job_that_starts_at_once_ends_no_idle_workers():
    world = Simulation(cores=4, worker_idle_time=math.inf)
    idle_jobs(world)
    for number in range(100):
        world.waiting_others = [number]  # another one at each survey
        world.run(for_=0.1)
    assert world.cores_in_use() == 2
    world.run(for_=11.0)
    assert world.cores_in_use() == 0


def test_workers_that_are_busy_stay():
    world = Simulation(nodes=2, cores=1, worker_idle_time=math.inf)
    world.waiting_others = [77]
    world.submit(1, function=Function(1.0))
    world.submit(1, function=LONG)
    world.run(for_=2.0)
    assert world.cores_in_use() == 1


def test_a_job_that_waits_for_something_else_does_not_end_workers_for_good():
    world = Simulation(cores=2, worker_idle_time=5.0)
    world.waiting_others = [77]
    idle_jobs(world)
    world.run(for_=survey.YIELD_TIME + 1.0)
    world.outcomes.clear()
    idle_jobs(world)
    world.run(for_=4.0)
    assert world.cores_in_use() == 2
    world.waiting_others.append(78)
    world.run(for_=3.0)
    assert world.cores_in_use() == 0


def test_surveys_while_idle_are_few():
    world = Simulation(cores=2, worker_idle_time=math.inf)
    idle_jobs(world)
    before = world.counts[Survey]
    world.run(for_=100.0)
    assert 10 <= world.counts[Survey] - before <= 30


def test_a_chain_of_tasks_asks_nothing():
    world = Simulation(cores=1, worker_idle_time=3.0)
    idle_jobs(world)
    world.run(for_=0.05)
    before = world.counts[Survey]
    for _ in range(100):
        world.submit(1, function=Function(0.02))
        count = len(world.outcomes) + 1
        world.run(until=lambda count=count: len(world.outcomes) == count)
        world.run(for_=0.02)
    assert world.counts[Survey] == before


# -- why it waits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("resources", [SMALL, ALONE, shaped(2)])
def test_a_task_that_cannot_run_says_so_within_5_s_once(resources, caplog):
    world = Simulation(cores=2)
    world.occupy(0, 2)
    (task,) = world.submit(1, resources, Function(0.1))
    with caplog.at_level(logging.WARNING, "parsl_flux_bulk"):
        world.run(for_=4.9)
        assert len(caplog.records) == 1, caplog.text
        assert "0 of 2 cores" in caplog.text
        assert "other programs hold 2 cores" in caplog.text
        assert "insufficient resources" in caplog.text
        world.run(for_=60.0)
    assert len(caplog.records) == 1, "once"
    assert "other programs hold 2 cores" in story_of(world, task).splitlines()[-1]
    world.release(0, 2)
    world.run_all()


@pytest.mark.parametrize("resources", [SMALL, ALONE])
@pytest.mark.parametrize("known", [False, True])
def test_a_task_that_no_node_is_up_for_says_so_and_runs_later(resources, known, caplog):
    world = Simulation(cores=2, worker_idle_time=2.0)
    idle_jobs(world)
    world.run(for_=5.0)
    world.drain_node()
    if known:
        world.scheduler.handle(world.usage())
        world.run(for_=1.0)
    (task,) = world.submit(1, resources, Function(0.1))
    with caplog.at_level(logging.WARNING, "parsl_flux_bulk"):
        world.run(for_=4.9)
    assert "0 nodes that are up" in caplog.text
    assert "0 nodes that are up" in story_of(world, task).splitlines()[-1]
    world.undrain_node()
    world.run(until=lambda: task in world.outcomes, for_=10.0)
    assert task in world.outcomes


def test_a_task_job_that_is_held_for_others_says_so(caplog):
    world = Simulation(cores=2)
    world.occupy(0, 1)
    world.run(for_=0.5)
    world.submit(1, function=LONG)
    until_running(world)
    (task,) = world.submit(1, TWO_RANKS, Function(0.1))
    with caplog.at_level(logging.WARNING, "parsl_flux_bulk"):
        world.run(for_=5.0)
    assert "its job is held" in story_of(world, task)
    assert f"task={task.task_id}" in caplog.text


def test_tasks_that_wait_for_each_other_are_no_news(caplog):
    world = Simulation(cores=2)
    world.submit(20, function=Function(5.0))
    world.submit(10, ALONE, Function(5.0))
    with caplog.at_level(logging.WARNING, "parsl_flux_bulk"):
        world.run_all()
    assert not caplog.records
