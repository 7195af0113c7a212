"""MPI programs of several tasks on one node: the tasks find each other, on every kind of instance."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import mpi_program
import pytest
from mpi_program import needs_mpicc
from seam import Seam, jobspec, shell

from parsl_flux_bulk.instances.base import JobStatus

pytestmark = pytest.mark.mpi

FOUR = {"type": "node", "count": 4}
"""Tasks on one node, whatever its number of cores."""

PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int rank, size, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("%d of %d, sum %d\n", rank, size, sum);
    fflush(stdout);
    if (argc > 1 && rank == 1)
        MPI_Abort(MPI_COMM_WORLD, atoi(argv[1]));
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    return 0;
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiled MPI program; with a number as its argument, rank 1 aborts with it."""
    directory = tmp_path_factory.mktemp("mpi")
    return str(mpi_program.build(PROGRAM, directory))


def lines_of(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


@needs_mpicc
def test_four_ranks_add_up(seam: Seam, program: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stdout = {"stdout": {"type": "file", "path": str(out)}}
    _, result = seam.run_one(jobspec([program], per_resource=FOUR, output=stdout))
    assert result.ok, result
    assert lines_of(out) == [f"{rank} of 4, sum 6" for rank in range(4)]


@needs_mpicc
def test_a_shell_may_start_the_program(seam: Seam, program: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stdout = {"stdout": {"type": "file", "path": str(out)}}
    _, result = seam.run_one(shell(f"{program}; exit $?", per_resource=FOUR, output=stdout))
    assert result.ok, result
    assert lines_of(out) == [f"{rank} of 4, sum 6" for rank in range(4)]


@needs_mpicc
def test_one_rank_aborts_all(seam: Seam, program: str) -> None:
    _, result = seam.run_one(jobspec([program, "9"], per_resource=FOUR))
    assert result.status is JobStatus.FAILED


THROUGH_THE_LIBRARY = """
import ctypes, os, sys
assert os.environ["FLUX_JOB_ID"]  # by which Open MPI recognizes Flux
library = ctypes.CDLL(os.environ["FLUX_PMI_LIBRARY_PATH"])
spawned, rank, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
name, value = ctypes.create_string_buffer(64), ctypes.create_string_buffer(1024)
for call, *arguments in [
    (library.PMI_Init, ctypes.byref(spawned)),
    (library.PMI_Get_rank, ctypes.byref(rank)),
    (library.PMI_Get_size, ctypes.byref(size)),
    (library.PMI_KVS_Get_my_name, name, 64),
]:
    assert call(*arguments) == 0, call
assert library.PMI_KVS_Put(name, b"key%d" % rank.value, b"value %d" % rank.value) == 0
assert library.PMI_KVS_Commit(name) == 0 and library.PMI_Barrier() == 0
other = (rank.value + 1) % size.value
assert library.PMI_KVS_Get(name, b"key%d" % other, value, 1024) == 0
assert library.PMI_Finalize() == 0
sys.stdout.write(f"{rank.value} of {size.value} got {value.value.decode()}\\n")
"""
"""What Open MPI 4 does in a job of Flux."""


@pytest.mark.skipif(shutil.which("flux") is None, reason="needs Flux's library")
def test_tasks_find_each_other_through_the_library_of_flux(seam: Seam, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stdout = {"stdout": {"type": "file", "path": str(out)}}
    command = [sys.executable, "-c", THROUGH_THE_LIBRARY]
    _, result = seam.run_one(jobspec(command, per_resource=FOUR, output=stdout))
    assert result.ok, result
    assert lines_of(out) == [f"{rank} of 4 got value {(rank + 1) % 4}" for rank in range(4)]


def test_without_pmi_each_task_is_alone(seam: Seam) -> None:
    _, result = seam.run_one(shell('test -z "$PMI_FD$PMI_RANK$PMI_SIZE"', per_resource=FOUR, pmi="off"))
    assert result.ok, result
