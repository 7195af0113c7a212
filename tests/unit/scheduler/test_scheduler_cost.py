"""Microseconds and bytes that a task costs."""

import time
import tracemalloc

import helpers
import pytest
from world import (
    FAILED,
    SMALL,
    Function,
    Simulation,
    make_task,
    new_scheduler,
    until_running,
)

from parsl_flux_bulk.instances.base import Capacity, JobResult, JobStatus
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    JobEnded,
    PeerConnected,
    ResolveTask,
    TaskOutcome,
)


def cost_of_a_task(workers, tasks):
    """Seconds of CPU from submit to ResolveTask, with so many workers."""
    scheduler = new_scheduler(Capacity(1, workers, 0))
    function = Function()
    made = [make_task(i + 1, SMALL, function, b"call") for i in range(tasks)]
    start = time.process_time()
    scheduler.submit(made)
    submit, *_ = scheduler.take(0.0)
    scheduler.handle(PeerConnected("manager", submit.job.token, workers))
    now, ended = 0.1, 0
    while ended < tasks:
        for instruction in scheduler.take(now):
            if isinstance(instruction, AssignTasks):
                for task in instruction.tasks:
                    scheduler.handle(TaskOutcome("manager", instruction.slot, task.task_id, b""))
            elif isinstance(instruction, ResolveTask):
                ended += 1
        now += 0.0001 * tasks / workers / 1000
    return (time.process_time() - start) / tasks


@pytest.mark.parametrize(("workers", "tasks"), [(2, 100_000), (2, 10_000), (2000, 100_000)])
def test_a_task_costs_a_few_microseconds(workers, tasks):
    # Measured: 15 to 23 units; the bound leaves room for busy machines.
    assert any(cost_of_a_task(workers, tasks) < 80 * helpers.cpu_unit() for _ in range(3))


def test_a_waiting_task_costs_its_place_in_a_queue():
    scheduler = new_scheduler(Capacity(1, 2, 0))
    function = Function()
    made = [make_task(i + 1, SMALL, function, b"call") for i in range(100_000)]
    tracemalloc.start()
    try:
        scheduler.submit(made)
        scheduler.take(0.0)
        assert tracemalloc.get_traced_memory()[0] < 16 * len(made)
    finally:
        tracemalloc.stop()


def test_job_results_are_not_confused():
    world = Simulation(cores=1)
    (task,) = world.submit(1)
    until_running(world)
    (model,) = world.jobs.values()
    world.run_all()
    world.finish_job(model, JobResult(JobStatus.COMPLETED, exit_code=0))
    world.event(lambda d: d.handle(JobEnded(model.job, FAILED)))
    world.run()
    assert isinstance(world.outcomes[task], bytes)
