"""The scheduler when blocks come, go and are lost: what moves, what is blamed, what waits."""

import pytest
from world import SMALL, Function, Simulation, make_task, new_scheduler

from parsl_flux_bulk.instances.base import Capacity, EndCause, JobResult, JobStatus
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    CancelJob,
    CapacityChanged,
    JobEnded,
    PeerConnected,
    PeerLost,
    RecallTasks,
    ResolveTask,
    StopPeer,
    SubmitJob,
    TaskOutcome,
)
from parsl_flux_bulk.scheduler.outcomes import GRACE, START_LIMIT
from parsl_flux_bulk.scheduler.task import CANCELED, CommandEnded, Loss, LossReason

ALONE = Resources(num_tasks=1, duration=60.0)
LOST = JobResult(JobStatus.FAILED, exception=EndCause.BLOCK_LOST.value, note="block 0: its host died")
NOWHERE = JobResult(JobStatus.FAILED, exception=EndCause.BLOCK_LOST.value, started=False)
TOO_SHORT = JobResult(JobStatus.FAILED, exception=EndCause.NO_BLOCK.value, started=False)


class Bare:
    """A scheduler, and what it says."""

    def __init__(self, *tasks, capacity=Capacity(1, 2, 0)):  # noqa: B008
        self.now = 0.0
        self.scheduler = new_scheduler(capacity)
        self.scheduler.submit(tasks)

    def told(self, kind, seconds=0.1):
        """What it says of one kind within some seconds."""
        found = [i for i in self.scheduler.take(self.now) if isinstance(i, kind)]
        end = self.now + seconds
        while (deadline := self.scheduler.deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            found += [i for i in self.scheduler.take(self.now) if isinstance(i, kind)]
        self.now = end
        return found

    def job(self):
        (submitted,) = self.told(SubmitJob)
        return submitted.job


def task(number=1, resources=ALONE, bare=False):
    return make_task(number, resources, Function(), bare=bare)


# -- task jobs -------------------------------------------------------------------------------------


def test_a_task_job_that_never_began_moves_with_its_block():
    first = task()
    bench = Bare(first)
    lost = bench.job()
    bench.scheduler.handle(JobEnded(lost, LOST))
    again = bench.job()
    assert again.task is first and again is not lost
    assert bench.scheduler.status().failed == 0


def test_one_that_was_never_placed_moves_too_even_without_python():
    command = task(bare=True)
    bench = Bare(command)
    bench.scheduler.handle(JobEnded(bench.job(), NOWHERE))
    assert bench.job().task is command


def test_a_task_job_that_began_is_lost_with_its_block():
    bench = Bare(task())
    job = bench.job()
    bench.scheduler.handle(PeerConnected("p", job.token, 0, "node1"))
    assert bench.told(AssignTasks)
    bench.scheduler.handle(PeerLost("p"))
    bench.scheduler.handle(JobEnded(job, LOST))
    (resolved,) = bench.told(ResolveTask, GRACE + 1)
    assert isinstance(resolved.outcome, Loss)
    assert (resolved.outcome.result, resolved.outcome.host) == (LOST, "node1")


def test_a_bash_command_that_may_have_begun_is_lost_with_its_block():
    bench = Bare(task(bare=True))
    bench.scheduler.handle(JobEnded(bench.job(), LOST))
    (resolved,) = bench.told(ResolveTask)
    assert isinstance(resolved.outcome, CommandEnded)


def test_an_outcome_that_came_before_the_block_was_lost_counts():
    bench = Bare(task())
    job = bench.job()
    bench.scheduler.handle(PeerConnected("p", job.token, 0, "node1"))
    bench.scheduler.handle(TaskOutcome("p", 0, 1, b"value"))
    bench.scheduler.handle(PeerLost("p"))
    bench.scheduler.handle(JobEnded(job, LOST))
    assert [resolved.outcome for resolved in bench.told(ResolveTask)] == [b"value"]


def test_a_canceled_task_does_not_move():
    first = task()
    bench = Bare(first)
    job = bench.job()
    bench.scheduler.cancel(first)
    assert bench.told(CancelJob)
    bench.scheduler.handle(JobEnded(job, LOST))
    assert [resolved.outcome for resolved in bench.told(ResolveTask)] == [CANCELED]
    assert bench.told(SubmitJob) == []


# -- task jobs that only another block has time for -----------------------------------------------


def test_a_task_that_no_block_has_time_for_waits_until_there_are_others():
    bench = Bare(task())
    bench.scheduler.handle(JobEnded(bench.job(), TOO_SHORT))
    assert bench.told(SubmitJob, 60.0) == []
    assert bench.scheduler.status().pending == 1
    bench.scheduler.handle(CapacityChanged(Capacity(2, 4, 0)))
    assert bench.job().task.task_id == 1


def test_others_do_not_wait_for_it():
    bench = Bare(task(1), task(2))
    held = [submitted.job for submitted in bench.told(SubmitJob)]
    for job in held:
        bench.scheduler.handle(JobEnded(job, TOO_SHORT))
    bench.scheduler.submit([task(3), task(4)])
    assert [submitted.job.task.task_id for submitted in bench.told(SubmitJob)] == [3, 4]


def test_it_can_be_canceled_meanwhile():
    first = task()
    bench = Bare(first)
    bench.scheduler.handle(JobEnded(bench.job(), TOO_SHORT))
    bench.scheduler.cancel(first)
    assert [resolved.outcome for resolved in bench.told(ResolveTask)] == [CANCELED]
    bench.scheduler.handle(CapacityChanged(Capacity(2, 4, 0)))
    assert bench.told(SubmitJob) == []
    assert bench.scheduler.status().pending == 0


def test_it_ends_at_shutdown():
    bench = Bare(task())
    bench.scheduler.handle(JobEnded(bench.job(), TOO_SHORT))
    bench.scheduler.shutdown()
    (resolved,) = bench.told(ResolveTask)
    assert resolved.outcome.reason is LossReason.SHUT_DOWN


# -- workers ---------------------------------------------------------------------------------------


def lose_block(world):
    """All that runs in the only block ends with it."""
    for model in [*world.active(), *world.pending()]:
        for manager in model.managers:
            manager.end(silent=True)
            world.scheduler.handle(PeerLost(manager.peer_id))
        world.finish_job(model, LOST)


def test_what_a_lost_block_ran_is_blamed_and_the_rest_runs_elsewhere():
    world = Simulation(cores=2)
    tasks = world.submit(200, function=Function(0.5))
    world.run(until=lambda: len(world.starts) >= 4)
    lose_block(world)
    world.run_all()
    lost = [task for task in tasks if isinstance(world.outcomes[task], Loss)]
    assert 2 <= len(lost) <= 4
    assert all(world.outcomes[task].result == LOST for task in lost)
    assert sum(world.starts.values()) <= 200


@pytest.mark.parametrize("result", [LOST, NOWHERE])
def test_blocks_that_are_lost_before_there_is_a_worker_are_no_fault_of_the_tasks(result):
    bench = Bare(task(resources=Resources(shape=Shape())))
    for _ in range(3 * START_LIMIT):
        bench.scheduler.handle(JobEnded(bench.job(), result))
    assert bench.scheduler.status().failed == 0
    assert bench.job().slots == 1


def test_without_any_block_nothing_is_submitted_and_all_is_when_there_is_one():
    bench = Bare(task(1), task(2, SMALL), capacity=Capacity(0, 0, 0))
    assert bench.told(SubmitJob, 60.0) == []
    bench.scheduler.handle(CapacityChanged(Capacity(1, 2, 0)))
    assert len(bench.told(SubmitJob)) == 2


# -- drain_jobs --------------------------------------------------------------------------------------


def test_a_block_that_is_to_end_gives_back_what_it_has_not_started():
    world = Simulation(nodes=2, cores=1)
    world.submit(40, function=Function(0.01))
    world.run(until=lambda: len(world.scheduler.status().workers) and len(world.active()) == 2)
    world.run(for_=0.05)
    leaving, staying = [model.job for model in world.active()]
    world.event(lambda scheduler: scheduler.drain_jobs(lambda job: job is leaving, "its block is to end"))
    world.run_all()
    assert set(map(type, world.outcomes.values())) == {bytes}
    assert leaving.result is not None and staying.result is None
    assert world.counts[RecallTasks] or world.counts[StopPeer]


def test_only_the_chosen_workers_leave():
    world = Simulation(nodes=2, cores=2)
    world.submit(100, function=Function(0.2))
    world.run(until=lambda: len(world.active()) == 2)
    chosen = world.active()[0].job
    world.event(lambda scheduler: scheduler.drain_jobs(lambda job: job is chosen, "its block is to end"))
    world.run(until=lambda: chosen.result is not None)
    assert world.now < 2.0, "it ended only when all work was done"
    world.run_all()
    assert all(isinstance(outcome, bytes) for outcome in world.outcomes.values())


def test_workers_of_a_block_that_is_to_end_are_canceled_if_they_have_not_begun():
    bench = Bare(task(resources=SMALL))
    job = bench.job()
    bench.scheduler.drain_jobs(lambda _: True, "its block is to end")
    (canceled,) = bench.told(CancelJob)
    assert (canceled.job, canceled.reason) == (job, "its block is to end")
