"""What workers share that have fractions of cores or GPUs, and how many fit a node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import Function, Simulation, shaped

from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.worker_unit import WorkerUnit, worker_unit


@pytest.mark.parametrize(
    ("shape", "node", "bound", "unit"),
    [
        (Shape(1), (4, 0), None, WorkerUnit(1, 1)),
        (Shape(2), (7, 0), None, WorkerUnit(1, 2)),
        (Shape(0.5), (4, 0), None, WorkerUnit(2, 1)),
        (Shape(0.3), (4, 0), None, WorkerUnit(13, 4)),  # 4 / 0.3, as HighThroughputExecutor counts
        (Shape(1.5), (4, 0), None, WorkerUnit(1, 2)),
        (Shape(1.5), (6, 0), None, WorkerUnit(2, 3)),
        (Shape(1, 1), (8, 2), None, WorkerUnit(1, 1, 1)),
        (Shape(1, 0.25), (8, 2), None, WorkerUnit(4, 4, 1)),
        (Shape(1, 0.25), (4, 2), None, WorkerUnit(2, 2, 1)),  # the cores are too few for four on each
        (Shape(0.5, 0.25), (2, 1), None, WorkerUnit(4, 2, 1)),
        (Shape(2, 0.5), (8, 2), None, WorkerUnit(2, 4, 1)),
        (Shape(1, 0.6), (8, 2), None, WorkerUnit(1, 1, 1)),
        (Shape(1), (4, 0), 2, WorkerUnit(1, 2)),
        (Shape(1), (48, 0), 10, WorkerUnit(5, 24)),
        (Shape(1), (7, 0), 3, WorkerUnit(3, 7)),
        (Shape(4), (8, 0), 5, WorkerUnit(1, 4)),  # no more fit anyway
        (Shape(1, 1), (64, 4), 2, WorkerUnit(1, 32, 1)),
        (Shape(1, 0.25), (16, 2), 4, WorkerUnit(2, 8, 1)),
        (Shape(9), (4, 0), None, WorkerUnit(1, 9)),  # the instance refuses it
        (Shape(1, 3), (4, 2), None, WorkerUnit(1, 1, 3)),
        (Shape(1, 0.5), (4, 0), None, WorkerUnit(2, 2, 1)),
    ],
)
def test_the_unit(shape: Shape, node: tuple[int, int], bound: int | None, unit: WorkerUnit) -> None:
    assert worker_unit(shape, *node, bound) == unit


@given(
    st.integers(1, 32).map(lambda number: number / 4) | st.floats(0.1, 8),
    st.integers(8, 130),
    st.none() | st.integers(1, 130),
)
def test_as_many_workers_fit_a_node_as_its_cores_allow(cores: float, node: int, bound: int | None) -> None:
    unit = worker_unit(Shape(cores), node, 0, bound)
    wanted = int(node / cores + 1e-9)
    assert unit.fitting(node, 0) == min(wanted, bound or wanted)


def test_two_workers_a_core_in_the_scheduler() -> None:
    world = Simulation(cores=2)
    world.submit(8, resources=shaped(0.5), function=Function(seconds=1.0))
    world.run_all()
    assert [(job.slots, job.allocation.cores) for job in world.worker_jobs()] == [(4, 2)]
    assert 2.0 < world.now < 2.5


def test_one_task_starts_a_whole_unit_so_that_the_next_ones_join_it() -> None:
    world = Simulation(cores=4, gpus=1)
    world.submit(1, resources=shaped(1, 0.25), function=Function(seconds=1.0))
    world.run(for_=0.5)
    world.submit(3, resources=shaped(1, 0.25), function=Function(seconds=1.0))
    world.run_all()
    assert [(job.slots, job.allocation) for job in world.worker_jobs()] == [(4, (4, 1, 0))]
    assert world.now < 2.0


def test_max_workers_bounds_the_workers_of_a_unit() -> None:
    world = Simulation(cores=4, gpus=1, max_workers=2)
    world.submit(4, resources=shaped(1, 0.25), function=Function(seconds=1.0))
    world.run_all()
    assert [job.slots for job in world.worker_jobs()] == [2]
    assert 2.0 < world.now < 2.5


def test_no_more_workers_than_allowed_on_a_node() -> None:
    world = Simulation(cores=4, nodes=2, max_workers_per_node=2)
    world.submit(8, function=Function(seconds=1.0))
    world.run_all()
    assert sum(job.slots for job in world.worker_jobs()) == 4
    assert 2.0 < world.now < 2.5
