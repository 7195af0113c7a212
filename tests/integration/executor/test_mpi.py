"""MPI programs from bash apps, and MPI python apps, over several nodes of a real Flux instance."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import apps
import helpers
import mpi_program
import parsl
import parsl.app.errors as pe
import pytest
import ranks
from commands import command
from helpers import run_documentation, wait_gone
from mpi_program import needs_mpicc
from parsl.app.python import timeout

from parsl_flux_bulk import FluxBulkExecutor, FluxPoolExecutor
from parsl_flux_bulk.jobspec.job_environment import LAUNCHER_VARIABLES

pytestmark = [pytest.mark.flux, pytest.mark.mpi]

BOUND = 90.0
PROMPT = 20.0
"""Seconds in which a job must have ended after one of its ranks failed; by itself Flux takes 30."""

TWO_BY_TWO = {"num_nodes": 2, "num_tasks": 4}

HELLO = r"""
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
    printf("rank %d of %d, sum %d, nodes %s, local %s\n", rank, size, sum,
           getenv("FLUX_JOB_NNODES"), getenv("FLUX_TASK_LOCAL_ID"));
    fflush(stdout);
    if (argc > 1 && rank == atoi(argv[1]))
        exit(7);
    MPI_Finalize();
    return 0;
}
"""


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled MPI program; with a number as its argument, that rank fails."""
    directory = tmp_path_factory.mktemp("mpi")
    return mpi_program.build(HELLO, directory)


@pytest.fixture(scope="module")
def mpi_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mpi4py needs in its environment to find an MPI library."""
    directory = tmp_path_factory.mktemp("lib")
    mpich = ctypes.util.find_library("mpich")
    if mpich:
        # mpi4py's wheels want MPICH by the name that its descendants have agreed on; Debian's has another.
        (directory / "libmpi.so.12").symlink_to(_path_of(mpich))
    path = [*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), str(directory)]
    return {"LD_LIBRARY_PATH": os.pathsep.join(path)}


def _path_of(library: str) -> str:
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    return next(line.split("=>")[1].strip() for line in listing.splitlines() if line.split()[:1] == [library])


@pytest.fixture(scope="module")
def mpi4py(mpi_environment: dict[str, str]) -> None:
    """Skip the test where mpi4py does not work."""
    done = subprocess.run(
        [sys.executable, "-c", "from mpi4py import MPI"],
        env={**os.environ, **mpi_environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no MPI here: {done.stderr.strip().splitlines()[-1]} (pip install mpi4py mpich)")


@pytest.fixture(scope="module")
def four_nodes() -> Iterator[str]:
    """The URI of an instance of four nodes, all of them this machine."""
    with helpers.flux_instance("-s4") as uri:
        yield uri


@pytest.fixture(scope="module")
def executor(
    new_executor: Callable[..., AbstractContextManager[FluxBulkExecutor]],
    four_nodes: str,
    mpi_environment: dict[str, str],
) -> Iterator[FluxBulkExecutor]:
    """An executor on an instance of four nodes."""
    with new_executor(four_nodes, environment=mpi_environment) as executor:
        yield executor


@needs_mpicc
@pytest.mark.parametrize("spec", [TWO_BY_TWO, {"num_nodes": 2, "ranks_per_node": 2}], ids=["flux", "parsl"])
def test_a_bash_app_is_an_mpi_job(executor, hello, tmp_path, spec):
    out = tmp_path / "out"
    app = parsl.bash_app(command).wrapped_remote_function
    assert executor.submit(app, spec, str(hello), stdout=str(out)).result(BOUND) == 0
    lines = sorted(out.read_text().splitlines())
    assert lines == [f"rank {r} of 4, sum 6, nodes 2, local {r % 2}" for r in range(4)]


@needs_mpicc
def test_a_program_that_fails_on_one_rank_fails_the_app(executor, hello, tmp_path):
    spec = {**TWO_BY_TWO, "shell_options": {"exit-timeout": "1s"}}
    app = parsl.bash_app(command).wrapped_remote_function
    error = executor.submit(app, spec, f"{hello} 2", stdout=str(tmp_path / "out")).exception(BOUND)
    assert isinstance(error, pe.BashExitFailure) or "Exit 7" in str(error)


@pytest.mark.usefixtures("mpi4py")
@pytest.mark.parametrize("spec", [TWO_BY_TWO, {"num_nodes": 4, "num_ranks": 4}], ids=["2x2", "4x1"])
def test_a_python_app_runs_on_every_rank_and_returns_the_value_of_rank_0(executor, spec):
    assert executor.submit(ranks.allreduce, spec, 100).result(BOUND) == (406, 0, 4)


@pytest.mark.usefixtures("mpi4py")
def test_the_pool_runs_mpi_functions_beside_others(four_nodes, mpi_environment, tmp_path):
    with FluxPoolExecutor(
        instance=four_nodes, environment=mpi_environment, working_dir=str(tmp_path)
    ) as pool:
        on_four = pool.with_resources(**TWO_BY_TWO)
        first = on_four.submit(ranks.allreduce, 100)
        assert list(pool.map(abs, range(100))) == list(range(100))
        assert first.result(BOUND) == (406, 0, 4)
        assert list(on_four.map(ranks.allreduce, [0, 10])) == [(6, 0, 4), (46, 0, 4)]
        nodes = on_four.submit(ranks.gather_environment, "FLUX_JOB_NNODES", "FLUX_TASK_LOCAL_ID")
        assert nodes.result(BOUND) == [["2", "0"], ["2", "1"], ["2", "0"], ["2", "1"]]


@pytest.mark.usefixtures("mpi4py")
def test_the_ranks_are_where_the_specification_wants_them(executor):
    seen = executor.submit(ranks.gather_environment, TWO_BY_TWO, "FLUX_JOB_NNODES", "FLUX_TASK_LOCAL_ID")
    assert seen.result(BOUND) == [["2", "0"], ["2", "1"], ["2", "0"], ["2", "1"]]


@pytest.mark.usefixtures("mpi4py")
def test_what_an_enclosing_launcher_set_misleads_nobody(new_executor, mpi_environment, monkeypatch):
    for name, value in {"PMI_RANK": "5", "PMI_SIZE": "7", "PMI_FD": "99", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    with helpers.flux_instance("-s2") as uri, new_executor(uri, environment=mpi_environment) as executor:
        assert executor.submit(ranks.allreduce, {"num_nodes": 2}, 0).result(BOUND) == (1, 0, 2)


@pytest.mark.usefixtures("mpi4py")
@pytest.mark.parametrize("failing", [0, 3])
def test_a_rank_that_raises_ends_the_others_in_their_collective(executor, tmp_path, failing):
    future = executor.submit(ranks.fail_outside_a_collective, TWO_BY_TWO, failing, str(tmp_path / "pid"))
    error = future.exception(BOUND)
    assert type(error) is ArithmeticError and str(error) == f"planned on {failing}"
    assert f"raised on rank {failing}" in getattr(error, "__notes__", [])
    assert "fail_outside_a_collective" in "".join(traceback.format_exception(error))
    pids = [int((tmp_path / f"pid.{rank}").read_text()) for rank in range(4)]
    wait_gone(pids, PROMPT)
    # Its nodes are free again.
    assert executor.submit(ranks.allreduce, {"num_nodes": 4}, 0).result(BOUND) == (6, 0, 4)


@pytest.mark.parametrize("how", ["sleep", "gil"])
def test_ranks_that_are_stuck_end_with_their_walltime(executor, how):
    began = time.monotonic()
    error = executor.submit(timeout(apps.hold, 1), TWO_BY_TWO, how, 100).exception(90)
    assert time.monotonic() - began < 60
    assert type(error) is pe.AppTimeout and "hold exceeded walltime: 1.0 seconds" in str(error)


@needs_mpicc
@pytest.mark.usefixtures("mpi4py")
def test_the_examples_of_the_documentation(hello, mpi_environment, tmp_path):
    (tmp_path / "hello").symlink_to(hello)
    with helpers.flux_instance("-s4") as uri:
        run_documentation("mpi.md", f"instance={uri!r}, environment={mpi_environment}", tmp_path)
    assert len((tmp_path / "hello.txt").read_text().splitlines()) == 4


def test_the_documentation_lists_what_is_removed():
    text = (helpers.PROJECT / "docs" / "mpi.md").read_text(encoding="utf-8")
    assert [name for name in LAUNCHER_VARIABLES if f"`{name}`" not in text] == []
