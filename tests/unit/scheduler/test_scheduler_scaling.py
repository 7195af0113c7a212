"""How many worker jobs there are, how soon, and when they end."""

import math

import pytest
from world import (
    ALONE,
    SMALL,
    TWO_RANKS,
    Function,
    Simulation,
    make_task,
    shaped,
    slots,
    until_running,
)

from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.scheduler.messages import (
    CancelJob,
    CapacityChanged,
    StopPeer,
    SubmitJob,
    Survey,
)
from parsl_flux_bulk.scheduler.state_machine import Scheduler

# -- how many workers, how soon --------------------------------------------------------------------


def test_one_task_gets_one_worker_almost_at_once():
    world = Simulation(cores=64)
    world.submit(1)
    world.run(until=lambda: world.worker_jobs())
    assert world.now <= 0.005
    world.run_all()
    assert slots(world) == [1]


def test_a_flood_that_comes_in_steps_gets_one_job_of_all_cores():
    world = Simulation(cores=2)
    for count in (1, 50, 1000):
        world.submit(count)
        world.run(for_=0.001)
    world.run_all()
    assert slots(world) == [2]


def test_a_task_that_is_slow_to_be_followed_gets_company():
    world = Simulation(cores=64)
    world.submit(1, function=Function(0.5))
    until_running(world)
    world.submit(1000, function=Function(0.5))
    world.run_all()
    assert sum(slots(world)) == 64
    assert len(slots(world)) <= 3


def test_a_trickle_makes_few_jobs():
    world = Simulation(cores=64)
    slow = Function(30.0)
    for _ in range(64):
        world.submit(1, function=slow)
        world.run(for_=0.001)
    world.run(until=lambda: sum(slots(world)) == 64)
    assert len(slots(world)) <= 8


@pytest.mark.parametrize(("tasks", "expected"), [(3, [3]), (8, [8]), (9, [8, 1]), (1000, [8, 8])])
def test_as_many_workers_as_tasks_and_a_job_for_each_node(tasks, expected):
    world = Simulation(nodes=2, cores=8)
    world.submit(tasks, function=Function(1.0))
    world.run(until=lambda: world.worker_jobs())
    assert slots(world) == expected


def test_gpus_bound_the_workers():
    world = Simulation(nodes=2, cores=8, gpus=2)
    world.submit(100, shaped(1, 1), Function(0.1))
    world.run_all()
    assert slots(world) == [2, 2]


def test_nothing_is_submitted_until_the_capacity_is_known():
    scheduler = Scheduler(is_failure=lambda body: False)
    scheduler.submit([make_task(1, SMALL, Function(), b""), make_task(2, ALONE, Function(), b"")])
    assert scheduler.take(0.0) == []
    scheduler.handle(CapacityChanged(Capacity(1, 2, 0)))
    assert [type(instruction) for instruction in scheduler.take(0.0)] == [SubmitJob, Survey]
    assert scheduler.deadline() is not None


def test_a_chain_needs_one_worker_and_no_detours():
    world = Simulation(cores=8)
    step = Function(0.0001)
    world.submit(1, function=step)
    world.run_all()
    start = world.now
    for _ in range(200):
        world.submit(1, function=step)
        world.run_all()
    assert slots(world) == [1]
    assert (world.now - start) / 200 <= step.seconds + 2 * world.latency + 1e-6


def test_a_little_work_for_warm_workers_starts_no_further_ones():
    world = Simulation(cores=8)
    world.submit(2, function=(short := Function(0.0001)))
    world.run_all()
    for _ in range(20):
        world.submit(20, function=short)
        world.run_all()
    assert slots(world) == [2]


def test_a_burst_of_long_tasks_does():
    world = Simulation(cores=8)
    world.submit(2, function=(long := Function(0.2)))
    world.run_all()
    world.submit(20, function=long)
    world.run_all()
    assert sum(slots(world)) == 8


# -- retirement ------------------------------------------------------------------------------------


def test_idle_workers_retire_and_then_nothing_is_left_to_do():
    world = Simulation(worker_idle_time=3.0)
    world.submit(10)
    world.run_all()
    start = world.now
    world.run()
    assert 3.0 <= world.now - start <= 3.2
    assert world.counts[StopPeer] == 1
    assert world.scheduler.deadline() is None
    assert world.cores_in_use() == 0
    assert all(model.state == "ended" for model in world.jobs.values())


def test_workers_stay_for_ever_unless_others_need_their_cores():
    world = Simulation(cores=2, worker_idle_time=math.inf)
    world.submit(10)
    world.run_all()
    world.run(for_=1e4)
    assert slots(world) == [2]
    world.submit(1, TWO_RANKS)
    start = world.now
    world.run_all()
    assert world.now - start < 0.1


def test_a_worker_that_is_used_now_and_then_stays():
    world = Simulation(worker_idle_time=3.0)
    for _ in range(10):
        world.submit(1)
        world.run(for_=2.0)
    assert len(slots(world)) == 1


def test_idle_workers_leave_at_once_for_a_task_job():
    world = Simulation(cores=2, worker_idle_time=1000.0)
    world.submit(10)
    world.run_all()
    start = world.now
    world.submit(1, TWO_RANKS)
    world.run_all()
    assert world.now - start < 0.1


def test_idle_workers_leave_at_once_for_another_shape():
    world = Simulation(cores=2, worker_idle_time=1000.0)
    world.submit(10)
    world.run_all()
    start = world.now
    world.submit(1, shaped(2))
    world.run_all()
    assert world.now - start < 0.1


def test_without_an_idle_time_workers_still_get_their_tasks():
    world = Simulation(worker_idle_time=0.0)
    world.submit(100, function=Function(0.01))
    world.run_all()
    world.run()
    assert len(slots(world)) == 1
    assert world.cores_in_use() == 0


def test_a_job_that_does_not_end_when_told_is_canceled():
    world = Simulation(worker_idle_time=1.0)
    world.submit(1)
    world.run_all()
    (manager,) = world.managers.values()
    manager.receive = manager.down.clear
    world.run(until=lambda: world.counts[CancelJob])
    assert world.counts[StopPeer] == 1
