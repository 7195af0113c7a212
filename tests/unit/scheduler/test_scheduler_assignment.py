"""Which worker gets which task: service times, bytes, functions, and tasks behind long ones."""

import pytest
from world import (
    Function,
    Simulation,
    until_running,
)

from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    RecallTasks,
)
from parsl_flux_bulk.scheduler.service_time import BYTES_LIMIT, TARGET

# -- service_time ----------------------------------------------------------------------------------


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
        assert all(len(slot.queue) == 0 for manager in world.managers.values() for slot in manager.slots)


def test_what_a_worker_holds_is_a_few_hundredths_of_a_second_of_work():
    world = Simulation(cores=2)
    world.submit(5000, function=Function(0.002))
    world.run(until=lambda: len(world.outcomes) > 100)
    for _ in range(100):
        world.run(for_=0.003)
        for manager in world.managers.values():
            assert all(len(slot.queue) * 0.002 <= 1.1 * TARGET for slot in manager.slots)


@pytest.mark.parametrize("size", [1 << 20, 16 << 20])
def test_large_calls_are_given_by_the_byte_yet_one_travels_ahead(size):
    world = Simulation(cores=1)
    world.submit(200, function=Function(0.005), size=size)
    world.run(until=lambda: len(world.outcomes) > 20)
    most = 0
    for _ in range(100):
        world.run(for_=0.003)
        (slot,) = (slot for manager in world.managers.values() for slot in manager.slots)
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
    favorite = Function(0.0001)
    sent = []
    take = world.scheduler.take

    def watched(now):
        out = take(now)
        sent.extend(f for i in out if isinstance(i, AssignTasks) for f in i.functions)
        return out

    world.scheduler.take = watched
    for _ in range(1500):
        world.submit(1, function=Function(0.0001))
        world.submit(3, function=favorite)
    world.run_all()
    assert sent.count(favorite) <= 1 + 1500 // 256
    (manager,) = world.managers.values()
    assert len(manager.functions) <= 600  # the model checks that none was forgotten too early


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
    (manager,) = world.managers.values()
    assert manager.slots[0].running.function is long
    assert not manager.slots[0].queue
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
