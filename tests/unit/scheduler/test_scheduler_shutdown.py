"""The end of everything, and the counts."""

from world import (
    TWO_RANKS,
    Function,
    Simulation,
    losses,
    shaped,
)

from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.states import WorkerJobState
from parsl_flux_bulk.scheduler.task import LossReason


def test_shutdown_ends_every_task_and_every_job():
    world = Simulation(nodes=2, cores=2)
    world.submit(1000, function=Function(0.1))
    world.submit(5, shaped(2), function=Function(0.1))
    world.submit(5, TWO_RANKS, Function(0.1))
    world.run(for_=0.35)
    world.event(lambda scheduler: scheduler.shutdown())
    world.take()
    assert len(world.outcomes) == len(world.tasks)
    assert LossReason.SHUT_DOWN in losses(world, world.tasks)
    for model in world.jobs.values():
        assert model.state == "ended" or model.cancel or model.job.state is WorkerJobState.STOPPING
    world.submit(1)
    world.run()
    assert losses(world, world.tasks[-1:]) == [LossReason.SHUT_DOWN]
    assert world.cores_in_use() == 0
    world.event(lambda scheduler: scheduler.shutdown())
    world.run()


def test_status_counts():
    world = Simulation(nodes=2, cores=2)
    world.submit(100, function=Function(0.5))
    world.submit(1, TWO_RANKS, Function(0.5))
    world.run(for_=0.3)
    status = world.scheduler.status()
    assert status.pending + status.running == 101
    assert status.running == 3
    assert (status.task_jobs, status.done, status.failed) == (1, 0, 0)
    assert status.workers == status.busy_workers == {Shape(1, 0): 2}
    assert status.cores == {Shape(1, 0): 2}
    world.run_all()
    status = world.scheduler.status()
    assert (status.pending, status.running, status.done) == (0, 0, 101)
