"""The story of a task: what was decided about it, its jobs and its group, and why."""

import logging

import pytest
from world import ALONE, SMALL, Function, Simulation, cancel, shaped, until_running

from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler import story


def story_of(world, task):
    return world.scheduler.story(world.now, task.task_id, task)


def events(records):
    return [record.event for record in records]


def test_a_task_that_ran():
    world = Simulation(cores=1)
    (task,) = world.submit(1)
    world.run_all()
    world.run()
    records = story_of(world, task)
    assert events(records) == ["submit", "connect", "assign", "stop", "disconnect", "end"]
    assert [record.time for record in records] == sorted(record.time for record in records)
    assigned = records[2]
    assert list(assigned.tasks) == [task.task_id]
    assert (assigned.cause, assigned.shape) == ("worker 0 on node0", Shape(1, 0))
    assert records[3].cause == "idle for 3 s"
    assert {record.job for record in records} == {1}


def test_tasks_that_travel_together_share_a_record():
    world = Simulation(cores=1)
    tasks = world.submit(500)
    world.run_all()
    first, last = (story_of(world, task) for task in (tasks[0], tasks[250]))
    (batch,) = [record for record in last if record.event == "assign"]
    assert len(batch.tasks) > 10 and str(batch).endswith(f"tasks={len(batch.tasks)}: worker 0 on node0")
    assert batch not in first


def test_a_task_that_waits_for_a_worker_says_for_what():
    world = Simulation(cores=2)
    world.submit(2, function=Function(1000.0))
    until_running(world, 2)
    (task,) = world.submit(1)
    world.run(for_=0.1)
    *_, now = story_of(world, task)
    assert now.event == "now"
    assert now.cause == "one of 1 tasks that wait for a worker: 2 are busy, 0 idle, 0 starting"
    (other,) = world.submit(1, shaped(2))
    world.run(for_=0.1)
    *_, wait, now = story_of(world, other)
    assert wait.event == "wait"
    assert wait.cause == (
        "no room for further workers; needed: 2 cores, 0 GPUs, 0 whole nodes; free: 0 cores, 0 GPUs"
    )
    assert now.cause.endswith("0 are busy, 0 idle, 0 starting; no room for further workers")


def test_a_task_whose_job_is_held_says_why():
    world = Simulation(cores=1)
    tasks = world.submit(8, ALONE, Function(1000.0))
    until_running(world)
    task = tasks[-1]
    wait, now = story_of(world, task)
    assert wait.event == "wait" and wait.cause.startswith("no room for the next task job; needed: 1 cores")
    assert now.cause == f"in <TaskJob 8 held of {task!r}>: no room for the next task job".replace(">:", ">;")


def test_a_task_in_a_queue_says_where():
    world = Simulation(cores=1)
    (task,) = world.submit(1, function=Function(1000.0))
    until_running(world)
    *_, now = story_of(world, task)
    assert (
        now.cause
        == "in the queue of worker 0 on node0, in <WorkerJob 1 serving: 1 of Shape(cores=1, gpus=0)>"
    )


def test_losses_cancels_and_recalls_have_their_cause():
    world = Simulation(cores=1)
    world.submit(300, function=Function(0.001))
    world.run_all()
    (slow,) = world.submit(1, function=Function(1000.0))
    behind = world.submit(20, function=Function(0.001))
    world.run(for_=0.05)
    cancel(world, slow)
    world.run_all()
    told = [f"{record.event}: {record.cause}" for record in story_of(world, slow)]
    assert "kill: canceled while it ran" in told
    assert f"recall: worker 0 on node0: task {slow.task_id} is canceled" in told
    assert "end: canceled" in told
    assert events(story_of(world, behind[-1])).count("assign") >= 1
    (lost,) = world.submit(1, function=Function(1000.0))
    until_running(world)
    (manager,) = (manager for manager in world.managers.values() if not manager.ended)
    manager.die(manager.slots[0], signal=9)
    world.run_all()
    assert story_of(world, lost)[-1].cause == "its process died while it ran"


def test_a_drain_names_its_reason():
    world = Simulation(cores=2, worker_idle_time=1000.0)
    world.submit(2, function=Function(0.5))
    until_running(world, 2)
    (task,) = world.submit(1, shaped(2))
    world.run_all()
    drains = [record for record in story_of(world, world.tasks[0]) if record.event == "drain"]
    assert {record.cause for record in drains} == {"its cores are needed by tasks of another shape"}
    assert "submit" in events(story_of(world, task))


def test_the_logs_are_bounded():
    world = Simulation(cores=1)
    function = Function(0.0001)
    for _ in range(story.ASSIGNMENTS_LIMIT + 50):
        world.submit(1, function=function)
        world.run_all()
    assert "assign" not in events(story_of(world, world.tasks[0]))
    assert "assign" in events(story_of(world, world.tasks[-1]))


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_each_decision_is_a_line_of_the_debug_log(caplog, level):
    with caplog.at_level(level, logger=story.logger.name):
        world = Simulation(cores=1)
        world.submit(1, SMALL)
        world.run_all()
    lines = [record.getMessage() for record in caplog.records if record.name == story.logger.name]
    assert (len(lines) >= 3) == (level == logging.DEBUG)
    assert all(line.split()[1] in ("submit", "connect", "assign") for line in lines)
