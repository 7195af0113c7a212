"""What ends with a lost worker, manager, node or job, and what runs elsewhere."""

import itertools

import pytest
from world import (
    ALONE,
    FAILED,
    JOB_CANCELED,
    NODE_LOST,
    SMALL,
    Function,
    Simulation,
    losses,
    make_task,
    new_scheduler,
    shaped,
    slots,
    until_running,
)

from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.pipeline.exit_status_to_error import refused
from parsl_flux_bulk.scheduler.messages import (
    CapacityChanged,
    JobEnded,
    PeerConnected,
    PeerLost,
    StopPeer,
    SubmitJob,
    Survey,
    TaskOutcome,
    TaskReturned,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.outcomes import GRACE, START_LIMIT
from parsl_flux_bulk.scheduler.service_time import TARGET
from parsl_flux_bulk.scheduler.task import Loss, LossReason


def test_a_death_is_blamed_on_the_task_that_ran_and_on_no_other():
    world = Simulation(cores=2)
    world.submit(3000, function=Function(0.0005))
    victims = []
    for _ in range(20):
        until_running(world)
        world.run(for_=0.02)
        for manager in world.managers.values():
            slot = next((slot for slot in manager.slots if slot.running), None)
            if slot:
                victims.append(slot.running)
                manager.die(slot, signal=9)
                break
    world.run_all()
    world.check_all_ended()
    assert [task for task in world.tasks if isinstance(world.outcomes[task], Loss)] == sorted(
        victims, key=lambda task: task.task_id
    )
    loss = world.outcomes[victims[0]]
    assert (loss.reason, loss.signal, loss.host, loss.stderr) == (LossReason.CRASHED, 9, "node0", "trace")
    assert slots(world) == [2]


def test_a_function_that_kills_every_worker_fails_alone():
    world = Simulation(cores=2)
    poison, good = Function(0.01), Function(0.01)
    got_work = world.got_work

    def kills(slot):
        got_work(slot)
        if slot.running is not None and slot.running.function is poison:
            slot.manager.die(slot, exit_code=139)
            world.got_work(slot)

    world.got_work = kills
    bad = world.submit(50, function=poison)
    fine = world.submit(50, function=good)
    world.run_all()
    world.check_all_ended()
    assert losses(world, bad) == [LossReason.CRASHED] * 50
    assert losses(world, fine) == []
    assert len(slots(world)) == 1


def test_a_function_that_kills_its_manager_ends_too():
    world = Simulation(cores=2)
    poison = Function(0.01)
    got_work = world.got_work

    def kills(slot):
        got_work(slot)
        if slot.running is not None:
            slot.manager.end(137)

    world.got_work = kills
    bad = world.submit(20, function=poison)
    world.run_all()
    world.check_all_ended()
    assert len(losses(world, bad)) == 20
    assert world.outcomes[bad[0]].exit_code == 137
    assert len(slots(world)) <= 20


def test_of_a_lost_manager_only_what_it_had_is_lost_and_workers_come_again():
    world = Simulation(nodes=2, cores=1)
    tasks = world.submit(200, function=Function(0.1))
    until_running(world, 2)
    world.run(for_=1.05)
    victim = next(manager for manager in world.managers.values() if manager.slots[0].running)
    hit = [slot.running for slot in victim.slots]
    victim.end(137)
    world.run_all()
    world.check_all_ended()
    assert [task for task in tasks if isinstance(world.outcomes[task], Loss)] == hit
    assert {world.outcomes[task].reason for task in hit} == {LossReason.WORKER_LOST}
    loss = world.outcomes[hit[0]]
    assert (loss.exit_code, loss.host, loss.result.exit_code) == (137, "node0", 137)
    assert len(slots(world)) == 3


@pytest.mark.parametrize("leaving", [False, True])
def test_what_is_left_of_a_job_ends_after_the_loss_of_the_manager_that_was_busy(leaving):
    world = Simulation(nodes=2, cores=2)
    world.submit(2, function=Function(0.1))
    until_running(world, 2)
    (model,) = world.jobs.values()
    world.run(until=lambda: len(world.outcomes) == 2)
    world.submit(1, function=Function(1000.0))
    world.run(for_=60.0)
    assert model.state == "running"  # one of its two managers is busy
    (busy,) = [manager for manager in model.managers if manager.slots[0].running]
    if leaving:
        world.event(lambda d: d.drain_jobs(lambda job: True, "its block is to end"))
        world.run(for_=1.0)
        assert model.state == "running"
    busy.end(137)
    world.run_all()
    world.check_all_ended()
    world.run(until=lambda: model.state == "ended")
    assert world.now < 120.0


def test_tasks_queued_at_a_lost_manager_are_never_run_again_and_say_so():
    world = Simulation(cores=1)
    world.submit(500, function=Function(0.001))
    world.run(until=lambda: len(world.outcomes) > 200)
    (manager,) = world.managers.values()
    held = [manager.slots[0].running, *manager.slots[0].queue]
    assert 2 < len(held) <= TARGET / 0.001 + 1
    manager.end(137)
    world.run_all()
    world.check_all_ended()
    first, *others = sorted(losses(world, world.tasks), key=lambda reason: reason is LossReason.MAYBE_STARTED)
    assert first is LossReason.WORKER_LOST
    assert set(others) == {LossReason.MAYBE_STARTED}


def test_a_lost_broker_tells_of_its_jobs_only():
    world = Simulation(nodes=2, cores=1)
    world.submit(50, function=Function(0.1))
    until_running(world, 2)
    manager = next(iter(world.managers.values()))
    task = manager.slots[0].running
    model = manager.job
    manager.end(1, silent=True)
    lost_at = world.now
    world.finish_job(model, NODE_LOST)
    world.run_all()
    world.check_all_ended()
    assert world.outcomes[task].reason is LossReason.WORKER_LOST
    assert world.outcomes[task].result is NODE_LOST
    assert world.resolved_at[task] - lost_at <= GRACE + 0.01


def test_outcomes_that_arrive_after_the_end_of_their_job_count():
    world = Simulation(cores=1)
    (task,) = world.submit(1, function=Function(0.1))
    until_running(world)
    (manager,) = world.managers.values()
    manager.end(silent=True)
    world.finish_job(manager.job, JOB_CANCELED)
    world.finished[task] = {0: b"value"}
    world.after(
        GRACE / 2,
        lambda: world.event(lambda d: d.handle(TaskOutcome(manager.peer_id, 0, task.task_id, b"value"))),
    )
    world.run_all()
    assert world.outcomes[task] == b"value"


def test_workers_that_never_say_hello_are_not_tried_for_ever():
    world = Simulation(cores=2)
    world.start = lambda model, nodes: world.finish_job(model, FAILED)
    tasks = world.submit(100)
    world.run_all()
    assert len(slots(world)) == START_LIMIT
    assert set(losses(world, tasks)) == {LossReason.NO_WORKER}
    loss = world.outcomes[tasks[0]]
    assert (loss.exit_code, loss.stderr, loss.result) == (127, "no such file", FAILED)
    del world.start
    world.submit(10)
    world.run_all()
    assert losses(world, world.tasks[100:]) == []


def test_workers_that_die_before_they_run_anything_are_not_tried_for_ever():
    world = Simulation(cores=2)
    got_work = world.got_work

    def dies(slot):
        if slot.queue and slot.life < 10:
            slot.manager.die(slot, exit_code=1)

    world.got_work = dies
    tasks = world.submit(20)
    world.run_all(limit=5000)
    assert set(losses(world, tasks)) == {LossReason.NO_WORKER}
    assert not world.starts
    assert len(slots(world)) <= 2 * START_LIMIT
    world.got_work = got_work
    world.submit(10)
    world.run_all()
    assert losses(world, world.tasks[20:]) == []


def test_a_shape_that_cannot_be_fails_with_the_instances_reason_and_alone():
    world = Simulation(cores=2)
    bad = world.submit(5, shaped(1, 1))
    also_bad = world.submit(5, shaped(64))
    fine = world.submit(5)
    world.run_all()
    assert losses(world, bad + also_bad) == [LossReason.REFUSED] * 10
    assert world.outcomes[bad[0]].result.note == "unsatisfiable"
    assert losses(world, fine) == []


def test_a_job_that_is_refused_for_its_size_is_tried_smaller():
    world = Simulation(nodes=1, cores=2)
    world.event(lambda d: d.handle(CapacityChanged(Capacity(1, 16, 0))))
    tasks = world.submit(50, function=Function(0.01))
    world.run_all()
    assert losses(world, tasks) == []
    assert slots(world)[:4] == [16, 8, 4, 2]
    assert len(slots(world)) <= 4 + 7  # what it says it has, it is taken to have


def test_where_larger_jobs_are_refused_smaller_ones_use_all_cores():
    scheduler = new_scheduler(Capacity(4, 8, 0))
    function, numbers = Function(), itertools.count(1)

    def submit_and_wait(count, since):
        """The worker jobs that follow within a second."""
        scheduler.submit([make_task(next(numbers), SMALL, function) for _ in range(count)])
        took = [scheduler.take(since + 0.01 * step) for step in range(100)]
        return [each.job for each in itertools.chain(*took) if isinstance(each, SubmitJob)]

    jobs = submit_and_wait(7, 0.0)
    assert [job.slots for job in jobs] == [2, 2, 2, 1]
    # A limit of the instance on the cores of a job; the smallest one starts.
    for job in jobs[:3]:
        scheduler.handle(JobEnded(job, refused("requested ncores (2) exceeds policy limit of 1")))
    scheduler.handle(PeerConnected("manager", jobs[3].token, 1))
    assert [job.slots for job in submit_and_wait(100, 1.0)] == [1] * 7


def test_jobs_of_others_make_ours_wait_and_nothing_else():
    world = Simulation(cores=2)
    world.occupy(0, 2)
    world.submit(100)
    world.submit(3, ALONE)
    world.run(for_=60.0)
    submitted = world.counts[SubmitJob]
    assert submitted <= 4
    assert world.wakeups < 200
    world.release(0, 2)
    world.run_all()


def test_messages_from_strangers_are_ignored():
    scheduler = new_scheduler(Capacity(1, 2, 0))
    scheduler.handle(PeerConnected("x", 77, 4))
    instruction, survey = scheduler.take(0.0)
    assert survey == Survey()
    assert isinstance(instruction, StopPeer)
    assert instruction.peer == "x"
    scheduler.handle(TaskOutcome("x", 0, 1, b""))
    scheduler.handle(TaskReturned("x", 3, 1))
    scheduler.handle(WorkerDied("x", 0, 1))
    scheduler.handle(PeerLost("x"))
    assert scheduler.take(1.0) == []
