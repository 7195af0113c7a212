"""Canceling tasks that wait, that are queued and that run."""

import pytest
from world import (
    TWO_RANKS,
    Function,
    Simulation,
    cancel,
    losses,
    until_running,
)

from parsl_flux_bulk.scheduler.messages import (
    CancelJob,
    KillWorker,
    RecallTasks,
)
from parsl_flux_bulk.scheduler.states import TaskJobState
from parsl_flux_bulk.scheduler.task import CANCELED


def test_canceling_a_waiting_task_drops_it():
    world = Simulation(cores=1)
    _first, second, _third = world.submit(3, function=Function(0.1))
    until_running(world)
    cancel(world, second)
    world.run(until=lambda: second in world.outcomes)
    world.run_all()
    assert world.outcomes[second] is CANCELED
    assert not world.starts[second]
    assert world.counts[KillWorker] == 0
    assert world.scheduler.status().canceled == 1


def test_canceling_a_running_task_ends_its_worker_and_moves_the_others():
    world = Simulation(cores=1)
    world.submit(300, function=(short := Function(0.001)))
    world.run_all()
    (slow,) = world.submit(1, function=Function(1000.0))
    behind = world.submit(20, function=short)
    world.run(for_=0.05)
    assert world.starts[slow]
    cancel(world, slow)
    told = world.scheduler.take(world.now)
    # First the others are asked back: nothing is to start between our look and the end.
    assert [type(instruction) for instruction in told] == [RecallTasks, KillWorker]
    (manager,) = world.managers.values()
    manager.down.extend(told)
    world.sent_down(manager)
    world.sent_down(manager)
    start = world.now
    world.run_all()
    assert world.now - start < 1.0
    assert world.outcomes[slow] is CANCELED
    assert losses(world, behind) == []


def test_canceling_a_task_in_a_workers_queue_leaves_what_runs_alone():
    world = Simulation(cores=1)
    world.submit(2000, function=Function(0.002))
    world.run(until=lambda: len(world.outcomes) > 300)
    (manager,) = world.managers.values()
    task = manager.slots[0].queue[-1]
    cancel(world, task)
    world.run_all()
    assert world.outcomes[task] is CANCELED
    assert not world.starts[task]
    assert world.counts[KillWorker] == 0


def test_canceling_too_late_leaves_the_outcome():
    world = Simulation(cores=1)
    (task,) = world.submit(1, function=Function(0.1))
    until_running(world)
    world.run(for_=0.0999)
    (_manager,) = world.managers.values()
    cancel(world, task)
    world.run_all()
    assert world.outcomes[task] == b"value of 1"


def test_a_canceled_task_that_cannot_be_recalled_is_killed_when_it_runs():
    world = Simulation(cores=1)
    world.submit(300, function=Function(0.001))
    world.run_all()
    world.submit(1, function=Function(0.05))
    (slow,) = world.submit(1, function=Function(1000.0))
    world.run(until=lambda: slow.place is not None)
    (manager,) = world.managers.values()
    manager.return_task = lambda slot, task: None  # it has gone down the pipe, and cannot be had back
    cancel(world, slow)
    world.run(until=lambda: world.counts[KillWorker])
    del manager.return_task
    world.run_all()
    assert world.outcomes[slow] is CANCELED


@pytest.mark.parametrize("when", ["held", "pending", "running"])
def test_canceling_a_task_job(when):
    world = Simulation(cores=2)
    world.submit(1, TWO_RANKS, Function(0.5))
    world.run(for_=0.2)
    tasks = world.submit(10, TWO_RANKS, Function(0.5))
    world.run(for_=0.1)
    task = {"running": world.tasks[0], "pending": tasks[0], "held": tasks[-1]}[when]
    assert (task.place.state is TaskJobState.SUBMITTED) == (when != "held")
    cancel(world, task)
    world.run_all()
    assert world.outcomes[task] is CANCELED
    assert world.counts[CancelJob] == (when != "held")
    assert world.starts[task] == (2 if when == "running" else 0)
