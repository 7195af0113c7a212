"""What MPI python apps call in the tests. Workers import this module; mpi4py is imported by the calls."""

from __future__ import annotations

import os
import time


def allreduce(offset: int) -> tuple[int, int, int]:
    """Sum ``rank + offset`` over all ranks; return the sum, this rank, and the number of ranks."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.allreduce(world.rank + offset), world.rank, world.size


def gather_environment(*names: str) -> list[list[str]] | None:
    """Gather environment variables of every rank in rank 0."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.gather([os.environ.get(name, "") for name in names])


def fail_outside_a_collective(failing: int, started: str) -> None:
    """Raise on one rank while all others wait for it."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    with open(f"{started}.{world.rank}", "w") as file:
        file.write(str(os.getpid()))
    world.barrier()
    if world.rank == failing:
        raise ArithmeticError(f"planned on {world.rank}")
    world.barrier()
    time.sleep(300)
