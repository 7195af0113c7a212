"""How free cores are divided between node jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_flux_bulk.blocks.packed.packing import LEAST_CORES, NODE_JOBS, Packing, node_job_sizes


@pytest.mark.parametrize(
    ("free", "packing", "needed", "sizes"),
    [
        # Nothing is known of the jobs: all that is free.
        ([(8, 0), (64, 2)], Packing(), None, [(64, 2), (8, 0)]),
        # Nodes are divided into at most NODE_JOBS parts in all, of at least LEAST_CORES.
        ([(2, 0)], Packing(1, 0), None, [(2, 0)]),
        ([(8, 0)], Packing(1, 0), None, [(4, 0)] * 2),
        ([(64, 0)], Packing(1, 0), None, [(8, 0)] * 8),
        ([(10, 0)], Packing(1, 0), None, [(4, 0), (4, 0), (2, 0)]),
        ([(16, 0)] * 4, Packing(1, 0), None, [(8, 0)] * 8),
        ([(16, 0)] * 100, Packing(1, 0), None, [(16, 0)] * 100),
        # No more than the jobs need.
        ([(64, 0)], Packing(1, 0), 10, [(4, 0), (4, 0), (2, 0)]),
        ([(16, 0)] * 4, Packing(1, 0), 20, [(4, 0)] * 5),
        ([(64, 0)], Packing(1, 0), 1, [(1, 0)]),
        # Every part has room for a job, and no core is held that no job can use.
        ([(64, 0)], Packing(6, 0), None, [(12, 0)] * 5),
        ([(64, 0)], Packing(33, 0), None, [(33, 0)]),
        ([(7, 0), (1, 0)], Packing(2, 0), None, [(4, 0), (2, 0)]),
        ([(1, 0)], Packing(2, 0), None, []),
        # GPUs are taken for jobs that ask for them, and stay together.
        ([(64, 4), (8, 0)], Packing(1, 0), 8, [(4, 0)] * 2),
        ([(64, 4), (8, 0)], Packing(1, 1), None, [(64, 4)]),
    ],
    ids=str,
)
def test_sizes(
    free: list[tuple[int, int]], packing: Packing, needed: int | None, sizes: list[tuple[int, int]]
) -> None:
    assert node_job_sizes(free, packing, needed) == sizes


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 8)), max_size=20),
    st.integers(1, 32),
    st.none() | st.integers(1, 500),
)
def test_a_job_fits_each_and_few_are_started(
    free: list[tuple[int, int]], each: int, jobs: int | None
) -> None:
    needed = None if jobs is None else jobs * each
    sizes = node_job_sizes(free, Packing(each, 0, jobs), needed)
    useful = [cores - cores % each for cores, _ in free]
    assert all(cores % each == 0 and cores > 0 for cores, _ in sizes)
    assert sum(cores for cores, _ in sizes) == min(sum(useful), needed or 10**9)
    assert len(sizes) <= NODE_JOBS + len(free)
    assert all(cores >= min(LEAST_CORES, *filter(None, useful)) for cores, _ in sizes[: -len(free)])
