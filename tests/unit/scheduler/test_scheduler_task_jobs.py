"""Tasks with a job of their own: ranks, commands, one task per job."""

from world import (
    ALONE,
    TWO_RANKS,
    Function,
    Simulation,
    losses,
    until_running,
)

from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.scheduler.messages import (
    CancelJob,
)
from parsl_flux_bulk.scheduler.model import TaskJob
from parsl_flux_bulk.scheduler.outcomes import GRACE
from parsl_flux_bulk.scheduler.task import CommandEnded, Failed, LossReason


def test_rank_0_of_several_gives_the_value():
    world = Simulation(nodes=2, cores=2)
    (task,) = world.submit(1, Resources(num_tasks=4), Function(0.1))
    world.run_all()
    assert world.starts[task] == 4
    assert world.outcomes[task] == b"value of 1"
    assert world.counts[CancelJob] == 0


def test_a_rank_that_fails_fails_the_task_at_once():
    world = Simulation(cores=2)
    (task,) = world.submit(1, TWO_RANKS, Function(1000.0))
    until_running(world, 2)
    manager = list(world.managers.values())[1]
    manager.finish(manager.slots[0], b"!broken")
    start = world.now
    world.run_all()
    assert world.now - start < 0.01
    failed = world.outcomes[task]
    assert isinstance(failed, Failed) and (failed.rank, failed.body) == (1, b"!broken")
    world.run()
    assert world.counts[CancelJob] == 1
    assert world.cores_in_use() == 0


def test_an_exception_of_a_single_rank_is_its_outcome():
    world = Simulation(cores=2)
    (task,) = world.submit(1, ALONE, Function(1000.0))
    until_running(world)
    (manager,) = world.managers.values()
    manager.finish(manager.slots[0], b"!broken")
    world.run_all()
    failed = world.outcomes[task]
    assert isinstance(failed, Failed) and (failed.rank, failed.body) == (None, b"!broken")
    assert failed.job.task is task and failed.host == "node0"
    assert world.scheduler.status().failed == 1


def test_a_rank_that_is_lost_ends_the_others_too():
    world = Simulation(cores=2)
    (task,) = world.submit(1, TWO_RANKS, Function(1000.0))
    until_running(world, 2)
    manager = list(world.managers.values())[1]
    manager.end(139)
    start = world.now
    world.run_all()
    assert world.now - start <= GRACE + 0.01
    loss = world.outcomes[task]
    assert (loss.reason, loss.rank, loss.host) == (LossReason.WORKER_LOST, 1, "node0")
    world.run()
    assert world.cores_in_use() == 0


def test_a_task_job_that_crashes_says_how():
    world = Simulation(cores=2)
    (task,) = world.submit(1, ALONE, Function(1000.0))
    until_running(world)
    (manager,) = world.managers.values()
    manager.end(3)
    world.run_all()
    loss = world.outcomes[task]
    assert (loss.reason, loss.exit_code, loss.host) == (LossReason.JOB_ENDED, 3, "node0")
    assert isinstance(loss.job, TaskJob)


def test_a_task_job_that_is_refused_fails_alone():
    world = Simulation(nodes=2, cores=2)
    (bad,) = world.submit(1, Resources(num_tasks=64))
    (fine,) = world.submit(1, ALONE)
    world.run_all()
    assert losses(world, [bad, fine]) == [LossReason.REFUSED]


def test_a_bare_task_ends_as_its_job_does():
    world = Simulation(cores=2)
    (task,) = world.submit(1, ALONE, Function(0.1), bare=True)
    world.run_all()
    outcome = world.outcomes[task]
    assert isinstance(outcome, CommandEnded)
    assert outcome.result.ok
    assert world.scheduler.status().done == 1


def test_with_one_task_per_job_there_are_no_workers():
    world = Simulation(cores=2, tasks_per_job=1)
    tasks = world.submit(50, function=Function(0.01))
    world.run_all()
    assert not world.worker_jobs()
    assert [world.ran[i][0] for i in range(50)] == tasks


def test_a_flood_of_task_jobs_keeps_the_instance_full_and_the_jobs_inside_bounded():
    world = Simulation(cores=2, tasks_per_job=1, max_active_jobs=16)
    world.submit(500, function=Function(0.0))
    most = 0
    world.run(for_=2.0)
    for _ in range(20):
        world.run(for_=0.1)
        inside = [model for model in world.jobs.values() if model.state != "ended"]
        most = max(most, len(inside))
        assert len(inside) >= 3
    assert most <= 32
    world.run_all()
    assert world.now < 1.05 * 500 / 2 * (world.start_time + world.end_time + 4 * world.latency)


def test_of_long_task_jobs_few_are_passed_on_so_that_others_get_a_turn():
    world = Simulation(cores=2, tasks_per_job=None)
    world.submit(100, ALONE, Function(10.0))
    world.run(for_=1.0)
    assert sum(model.state != "ended" for model in world.jobs.values()) <= 4
