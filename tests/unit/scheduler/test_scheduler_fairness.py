"""Task jobs and workers, and shapes among each other, share the instance."""

from world import (
    ALONE,
    EXCLUSIVE,
    SMALL,
    TWO_RANKS,
    Function,
    Simulation,
    cancel,
    running,
    shaped,
    slots,
    until_running,
)

from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.scheduler.fair_share import QUANTUM
from parsl_flux_bulk.scheduler.messages import (
    StopPeer,
    SubmitJob,
)


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
