"""The scheduler, by a simulated clock: sizes, service_time, losses, cancelling, fairness."""

import time
import tracemalloc

import pytest
from world import (
    FAILED,
    JOB_CANCELED,
    NODE_LOST,
    SMALL,
    Function,
    Simulation,
    make_task,
    new_scheduler,
    shaped,
)

from parsl_flux_bulk.instances.base import Capacity, JobResult, JobStatus
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.scheduler.fair_share import QUANTUM
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    CancelJob,
    CapacityChanged,
    JobEnded,
    KillWorker,
    PeerConnected,
    PeerLost,
    RecallTasks,
    ResolveTask,
    StopPeer,
    SubmitJob,
    TaskOutcome,
    TaskReturned,
    WorkerDied,
)
from parsl_flux_bulk.scheduler.model import TaskJob
from parsl_flux_bulk.scheduler.outcomes import GRACE, START_LIMIT
from parsl_flux_bulk.scheduler.service_time import BYTES_LIMIT, TARGET
from parsl_flux_bulk.scheduler.state_machine import Scheduler
from parsl_flux_bulk.scheduler.states import TaskJobState, WorkerJobState
from parsl_flux_bulk.scheduler.task import CANCELED, CommandEnded, Loss, LossReason, RankFailed

EXCLUSIVE = Resources(num_nodes=2, num_tasks=2, exclusive=True)
ALONE = Resources(num_tasks=1, duration=60.0)
TWO_RANKS = Resources(num_tasks=2)


def slots(world):
    return [job.slots for job in world.worker_jobs()]


def losses(world, tasks):
    return [world.outcomes[task].reason for task in tasks if isinstance(world.outcomes[task], Loss)]


def running(world):
    """Tasks that a worker runs at this moment."""
    return [slot.running for pool in world.pools.values() for slot in pool.slots if slot.running]


def until_running(world, count=1):
    world.run(until=lambda: len(running(world)) >= count)
    return running(world)


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
    assert [type(instruction) for instruction in scheduler.take(0.0)] == [SubmitJob]
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


def test_a_job_that_does_not_end_when_told_is_cancelled():
    world = Simulation(worker_idle_time=1.0)
    world.submit(1)
    world.run_all()
    (pool,) = world.pools.values()
    pool.receive = pool.down.clear
    world.run(until=lambda: world.counts[CancelJob])
    assert world.counts[StopPeer] == 1


# -- service_time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0001, 0.0004, 0.002, 0.01, 0.03, 0.1, 1.0])
def test_workers_never_run_dry(seconds):
    world = Simulation(cores=2)
    count = int(min(20_000, max(40, 2 / seconds)))
    world.submit(count, function=Function(seconds))
    until_running(world)
    start = world.now
    world.run_all()
    assert world.now - start <= 1.05 * count * seconds / 2 + 0.01


def test_short_tasks_travel_in_bulk():
    world = Simulation(cores=2)
    world.submit(10_000)
    world.run_all()
    assert world.counts[AssignTasks] <= 10_000 / 40


def test_long_tasks_are_given_one_at_a_time():
    world = Simulation(cores=2)
    world.submit(50, function=Function(2 * TARGET))
    world.run(until=lambda: len(world.outcomes) > 10)
    for _ in range(100):
        world.run(for_=TARGET / 10)
        assert all(len(slot.queue) == 0 for pool in world.pools.values() for slot in pool.slots)


def test_what_a_worker_holds_is_a_few_hundredths_of_a_second_of_work():
    world = Simulation(cores=2)
    world.submit(5000, function=Function(0.002))
    world.run(until=lambda: len(world.outcomes) > 100)
    for _ in range(100):
        world.run(for_=0.003)
        for pool in world.pools.values():
            assert all(len(slot.queue) * 0.002 <= 1.1 * TARGET for slot in pool.slots)


@pytest.mark.parametrize("size", [1 << 20, 16 << 20])
def test_large_calls_are_given_by_the_byte_yet_one_travels_ahead(size):
    world = Simulation(cores=1)
    world.submit(200, function=Function(0.005), size=size)
    world.run(until=lambda: len(world.outcomes) > 20)
    most = 0
    for _ in range(100):
        world.run(for_=0.003)
        (slot,) = (slot for pool in world.pools.values() for slot in pool.slots)
        held = len(slot.queue) + (slot.running is not None)
        most = max(most, held)
        assert held <= max(2, BYTES_LIMIT // size)
    assert most >= 2


def test_many_functions_that_are_called_once_still_flow():
    world = Simulation(cores=2)
    for _ in range(2000):
        world.submit(1, function=Function(0.0005))
    until_running(world)
    start = world.now
    world.run_all()
    assert world.now - start <= 1.3 * 2000 * 0.0005 / 2


def test_a_function_travels_to_a_peer_once_and_old_ones_are_forgotten():
    world = Simulation(cores=2)
    favourite = Function(0.0001)
    sent = []
    take = world.scheduler.take

    def watched(now):
        out = take(now)
        sent.extend(f for i in out if isinstance(i, AssignTasks) for f in i.functions)
        return out

    world.scheduler.take = watched
    for _ in range(1500):
        world.submit(1, function=Function(0.0001))
        world.submit(3, function=favourite)
    world.run_all()
    assert sent.count(favourite) <= 1 + 1500 // 256
    (pool,) = world.pools.values()
    assert len(pool.functions) <= 600  # the model checks that none was forgotten too early


# -- no hoarding -----------------------------------------------------------------------------------


def test_tasks_behind_a_long_one_go_to_the_idle_worker():
    world = Simulation(cores=2)
    short, long = Function(0.0002), Function(30.0)
    world.submit(2000, function=short)
    world.run_all()
    world.submit(100, function=short)
    (slow,) = world.submit(1, function=long)
    shorts = world.submit(300, function=short)
    start = world.now
    world.run(until=lambda: all(task in world.outcomes for task in shorts))
    assert world.now - start < 0.3
    assert slow not in world.outcomes
    assert world.counts[RecallTasks] <= 10


def test_tasks_behind_a_long_one_come_back_even_if_nobody_is_idle():
    world = Simulation(cores=1)
    short, long = Function(0.0002), Function(30.0)
    world.submit(2000, function=short)
    world.run_all()
    world.submit(10, function=short)
    world.submit(1, function=long)
    world.submit(10, function=short)
    world.run(for_=1.0)
    (pool,) = world.pools.values()
    assert pool.slots[0].running.function is long
    assert not pool.slots[0].queue
    wakeups = world.wakeups
    world.run(for_=20.0)
    assert world.wakeups <= wakeups + 3  # nothing polls while it runs


def test_returned_tasks_go_before_later_ones_in_their_own_order():
    world = Simulation(cores=1)
    short = Function(0.0002)
    world.submit(2000, function=short)
    world.run_all()
    blocker = world.submit(1, function=Function(1.0))
    first = world.submit(10, function=short)
    world.run(for_=0.5)
    later = world.submit(10, function=short)
    world.run_all()
    order = [task for task, _, _ in world.ran if task in {*blocker, *first, *later}]
    assert order == [*blocker, *first, *later]


def test_mixed_durations_are_balanced():
    world = Simulation(cores=4)
    seconds = [0.3 if i % 40 == 0 else 0.0005 for i in range(2000)]
    functions = {value: Function(value) for value in set(seconds)}
    for value in seconds:
        world.submit(1, function=functions[value])
    until_running(world, 4)
    start = world.now
    world.run_all()
    assert world.now - start <= sum(seconds) / 4 + 0.5
    assert world.counts[RecallTasks] <= 150


# -- losses ----------------------------------------------------------------------------------------


def test_a_death_is_blamed_on_the_task_that_ran_and_on_no_other():
    world = Simulation(cores=2)
    world.submit(3000, function=Function(0.0005))
    victims = []
    for _ in range(20):
        until_running(world)
        world.run(for_=0.02)
        for pool in world.pools.values():
            slot = next((slot for slot in pool.slots if slot.running), None)
            if slot:
                victims.append(slot.running)
                pool.die(slot, signal=9)
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
            slot.pool.die(slot, exit_code=139)
            world.got_work(slot)

    world.got_work = kills
    bad = world.submit(50, function=poison)
    fine = world.submit(50, function=good)
    world.run_all()
    world.check_all_ended()
    assert losses(world, bad) == [LossReason.CRASHED] * 50
    assert losses(world, fine) == []
    assert len(slots(world)) == 1


def test_a_function_that_kills_its_pool_ends_too():
    world = Simulation(cores=2)
    poison = Function(0.01)
    got_work = world.got_work

    def kills(slot):
        got_work(slot)
        if slot.running is not None:
            slot.pool.end(137)

    world.got_work = kills
    bad = world.submit(20, function=poison)
    world.run_all()
    world.check_all_ended()
    assert len(losses(world, bad)) == 20
    assert world.outcomes[bad[0]].exit_code == 137
    assert len(slots(world)) <= 20


def test_of_a_lost_pool_only_what_it_had_is_lost_and_workers_come_again():
    world = Simulation(nodes=2, cores=1)
    tasks = world.submit(200, function=Function(0.1))
    until_running(world, 2)
    world.run(for_=1.05)
    victim = next(pool for pool in world.pools.values() if pool.slots[0].running)
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
def test_what_is_left_of_a_job_ends_after_the_loss_of_the_pool_that_was_busy(leaving):
    world = Simulation(nodes=2, cores=2)
    world.submit(2, function=Function(0.1))
    until_running(world, 2)
    (model,) = world.jobs.values()
    world.run(until=lambda: len(world.outcomes) == 2)
    world.submit(1, function=Function(1000.0))
    world.run(for_=60.0)
    assert model.state == "running"  # one of its two pools is busy
    (busy,) = [pool for pool in model.pools if pool.slots[0].running]
    if leaving:
        world.event(lambda d: d.drain_jobs(lambda job: True, "its block is to end"))
        world.run(for_=1.0)
        assert model.state == "running"
    busy.end(137)
    world.run_all()
    world.check_all_ended()
    assert model.state == "ended"
    assert world.now < 120.0


def test_tasks_queued_at_a_lost_pool_are_never_run_again_and_say_so():
    world = Simulation(cores=1)
    world.submit(500, function=Function(0.001))
    world.run(until=lambda: len(world.outcomes) > 200)
    (pool,) = world.pools.values()
    held = [pool.slots[0].running, *pool.slots[0].queue]
    assert 2 < len(held) <= TARGET / 0.001 + 1
    pool.end(137)
    world.run_all()
    world.check_all_ended()
    first, *others = sorted(losses(world, world.tasks), key=lambda reason: reason is LossReason.MAYBE_STARTED)
    assert first is LossReason.WORKER_LOST
    assert set(others) == {LossReason.MAYBE_STARTED}


def test_a_lost_broker_tells_of_its_jobs_only():
    world = Simulation(nodes=2, cores=1)
    world.submit(50, function=Function(0.1))
    until_running(world, 2)
    pool = next(iter(world.pools.values()))
    task = pool.slots[0].running
    model = pool.job
    pool.end(1, silent=True)
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
    (pool,) = world.pools.values()
    pool.end(silent=True)
    world.finish_job(pool.job, JOB_CANCELED)
    world.finished[task] = b"value"
    world.after(
        GRACE / 2,
        lambda: world.event(lambda d: d.handle(TaskOutcome(pool.peer_id, 0, task.task_id, b"value"))),
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
            slot.pool.die(slot, exit_code=1)

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
    (instruction,) = scheduler.take(0.0)
    assert isinstance(instruction, StopPeer)
    assert instruction.peer == "x"
    scheduler.handle(TaskOutcome("x", 0, 1, b""))
    scheduler.handle(TaskReturned("x", 3, 1))
    scheduler.handle(WorkerDied("x", 0, 1))
    scheduler.handle(PeerLost("x"))
    assert scheduler.take(1.0) == []


# -- cancelling ------------------------------------------------------------------------------------


def cancel(world, task):
    world.event(lambda scheduler: scheduler.cancel(task))


def test_cancelling_a_waiting_task_drops_it():
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


def test_cancelling_a_running_task_ends_its_worker_and_moves_the_others():
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
    (pool,) = world.pools.values()
    pool.down.extend(told)
    world.sent_down(pool)
    world.sent_down(pool)
    start = world.now
    world.run_all()
    assert world.now - start < 1.0
    assert world.outcomes[slow] is CANCELED
    assert losses(world, behind) == []


def test_cancelling_a_task_in_a_workers_queue_leaves_what_runs_alone():
    world = Simulation(cores=1)
    world.submit(2000, function=Function(0.002))
    world.run(until=lambda: len(world.outcomes) > 300)
    (pool,) = world.pools.values()
    task = pool.slots[0].queue[-1]
    cancel(world, task)
    world.run_all()
    assert world.outcomes[task] is CANCELED
    assert not world.starts[task]
    assert world.counts[KillWorker] == 0


def test_cancelling_too_late_leaves_the_outcome():
    world = Simulation(cores=1)
    (task,) = world.submit(1, function=Function(0.1))
    until_running(world)
    world.run(for_=0.0999)
    (_pool,) = world.pools.values()
    cancel(world, task)
    world.run_all()
    assert world.outcomes[task] == b"value of 1"


def test_a_cancelled_task_that_cannot_be_recalled_is_killed_when_it_runs():
    world = Simulation(cores=1)
    world.submit(300, function=(short := Function(0.001)))
    world.run_all()
    world.submit(1, function=Function(0.05))
    (slow,) = world.submit(1, function=Function(1000.0))
    world.run(until=lambda: slow.place is not None)
    (pool,) = world.pools.values()
    pool._return = lambda slot, task: None  # it has gone down the pipe, and cannot be had back
    cancel(world, slow)
    world.run(until=lambda: world.counts[KillWorker])
    del pool._return
    world.run_all()
    assert world.outcomes[slow] is CANCELED
    assert short is not None


@pytest.mark.parametrize("when", ["held", "pending", "running"])
def test_cancelling_a_task_job(when):
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


# -- task jobs -------------------------------------------------------------------------------------


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
    pool = list(world.pools.values())[1]
    pool.finish(pool.slots[0], b"!broken")
    start = world.now
    world.run_all()
    assert world.now - start < 0.01
    assert world.outcomes[task] == RankFailed(1, b"!broken")
    world.run()
    assert world.counts[CancelJob] == 1
    assert world.cores_in_use() == 0


def test_an_exception_of_a_single_rank_is_its_outcome():
    world = Simulation(cores=2)
    (task,) = world.submit(1, ALONE, Function(1000.0))
    until_running(world)
    (pool,) = world.pools.values()
    pool.finish(pool.slots[0], b"!broken")
    world.run_all()
    assert world.outcomes[task] == b"!broken"
    assert world.scheduler.status().failed == 1


def test_a_rank_that_is_lost_ends_the_others_too():
    world = Simulation(cores=2)
    (task,) = world.submit(1, TWO_RANKS, Function(1000.0))
    until_running(world, 2)
    pool = list(world.pools.values())[1]
    pool.end(139)
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
    (pool,) = world.pools.values()
    pool.end(3)
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


# -- fairness --------------------------------------------------------------------------------------


def test_a_large_task_gets_its_nodes_out_of_a_flood():
    world = Simulation(nodes=4, cores=2)
    world.submit(4000, function=Function(0.05))
    until_running(world, 8)
    world.run(for_=1.0)
    (big,) = world.submit(1, EXCLUSIVE, Function(0.5))
    start = world.now
    world.run(until=lambda: world.starts[big])
    assert world.now - start <= 0.05 + world.start_time + world.end_time + 0.02
    # The other two nodes worked on, and all four do in the end.
    assert len(running(world)) >= 6
    world.run(until=lambda: big in world.outcomes)
    ended = world.now
    until_running(world, 8)
    assert world.now - ended < 1.2 * QUANTUM


def test_a_large_task_gets_whole_nodes_though_workers_are_scattered():
    world = Simulation(nodes=4, cores=4)
    slow = Function(0.05)
    for count in (1, 1, 2, 4, 500):
        world.submit(count, function=slow)
        world.run(for_=0.02)
    world.run(for_=0.5)
    (big,) = world.submit(1, EXCLUSIVE, Function(0.1))
    start = world.now
    world.run(until=lambda: world.starts[big])
    assert world.now - start <= 0.3


def test_nodes_that_cannot_be_told_apart_are_taken_to_be_scattered_over():
    world = Simulation(nodes=4, cores=2)
    world.host_of = lambda node: "it"
    world.submit(4000, function=Function(0.05))
    until_running(world, 8)
    world.run(for_=1.0)
    (big,) = world.submit(1, EXCLUSIVE, Function(0.5))
    start = world.now
    world.run(until=lambda: world.starts[big])
    assert world.now - start <= 0.3
    world.run(until=lambda: big in world.outcomes)
    until_running(world, 8)


def test_a_task_job_that_fits_beside_the_workers_does_not_wait():
    world = Simulation(nodes=2, cores=2)
    world.submit(2, function=Function(30.0))
    until_running(world, 2)
    (task,) = world.submit(1, ALONE, Function(0.1))
    start = world.now
    world.run(until=lambda: task in world.outcomes)
    assert world.now - start < 0.2
    assert world.counts[StopPeer] == 0


def test_floods_and_streams_of_task_jobs_take_turns():
    world = Simulation(cores=2)
    flood = world.submit(200_000, function=Function(0.005))
    world.run(for_=0.5)
    for _ in range(200):
        world.submit(1, TWO_RANKS, Function(0.2))
    world.run(for_=20.0)
    small = sum(end - begin for task, begin, end in world.ran if task.resources is SMALL)
    large = sum(end - begin for task, begin, end in world.ran if task.resources is TWO_RANKS)
    # The instance has 40 core-seconds to give in that time.
    assert small >= 12
    assert large >= 10
    assert any(task in world.outcomes for task in flood)


def test_a_turn_of_workers_is_as_long_as_that_of_long_task_jobs():
    world = Simulation(cores=2)
    world.submit(100_000, function=Function(0.01))
    world.run(for_=0.5)
    first, second = world.submit(2, TWO_RANKS, Function(5.0))
    world.run(until=lambda: second in world.outcomes)
    ran = {task: (begin, end) for task, begin, end in world.ran}
    between = ran[second][0] - ran[first][1]
    assert 4.5 <= between <= 6.0


def test_two_shapes_share_in_proportion():
    world = Simulation(nodes=4, cores=4)
    world.submit(50_000, function=Function(0.02))
    world.run(for_=2.0)
    world.submit(50_000, shaped(2), Function(0.02))
    world.run(for_=3.0)
    world.ran.clear()
    world.run(for_=4.0)
    used = dict.fromkeys((1, 2), 0.0)
    for task, begin, end in world.ran:
        used[task.resources.shape.cores] += (end - begin) * task.resources.shape.cores
    assert sum(used.values()) >= 0.85 * 4.0 * 16
    assert 0.6 <= used[1] / used[2] <= 1.6


def test_a_few_tasks_of_another_shape_are_not_kept_waiting_by_a_flood():
    world = Simulation(cores=4)
    world.submit(100_000, function=Function(0.01))
    world.run(for_=2.0)
    few = world.submit(3, shaped(2), Function(0.01))
    start = world.now
    world.run(until=lambda: all(task in world.outcomes for task in few))
    assert world.now - start < 0.5


def test_more_shapes_than_cores_take_turns():
    world = Simulation(cores=2)
    shapes = [Shape(1, 0), Shape(2, 0)]
    for shape in shapes:
        world.submit(20_000, shaped(*shape), Function(0.01))
    world.run(for_=20.0)
    used = [
        sum((end - begin) * shape.cores for task, begin, end in world.ran if task.resources.shape == shape)
        for shape in shapes
    ]
    assert min(used) >= 8
    assert world.counts[SubmitJob] <= 30


def test_a_drain_that_is_not_needed_any_more_is_taken_back():
    world = Simulation(nodes=1, cores=4)
    world.submit(4, function=Function(30.0))
    until_running(world, 4)
    world.submit(100, function=Function(0.01))
    (big,) = world.submit(1, Resources(num_nodes=1, num_tasks=1, exclusive=True), Function(0.1))
    world.run(for_=5.0)
    assert not any(job.available for job in world.worker_jobs())
    cancel(world, big)
    world.run(for_=0.1)
    assert all(job.available for job in world.worker_jobs())
    world.run_all()
    assert len(slots(world)) == 1


# -- the end, and the counts -----------------------------------------------------------------------


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


# -- cost ------------------------------------------------------------------------------------------


def cost_of_a_task(workers, tasks):
    """Seconds of CPU from submit to ResolveTask, with so many workers."""
    scheduler = new_scheduler(Capacity(1, workers, 0))
    function = Function()
    made = [make_task(i + 1, SMALL, function, b"call") for i in range(tasks)]
    start = time.process_time()
    scheduler.submit(made)
    (submit,) = scheduler.take(0.0)
    scheduler.handle(PeerConnected("pool", submit.job.token, workers))
    now, ended = 0.1, 0
    while ended < tasks:
        for instruction in scheduler.take(now):
            if isinstance(instruction, AssignTasks):
                for task in instruction.tasks:
                    scheduler.handle(TaskOutcome("pool", instruction.slot, task.task_id, b""))
            elif isinstance(instruction, ResolveTask):
                ended += 1
        now += 0.0001 * tasks / workers / 1000
    return (time.process_time() - start) / tasks


@pytest.mark.parametrize(("workers", "tasks"), [(2, 100_000), (2, 10_000), (2000, 100_000)])
def test_a_task_costs_a_few_microseconds(workers, tasks):
    # Measured: 2 to 3; the bound leaves room for slow and busy machines.
    assert min(cost_of_a_task(workers, tasks) for _ in range(3)) < 12e-6


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
