"""MPI programs from bash apps and MPI python apps, each a Flux job, beside small tasks in warm workers.

When to use it
    Inside an allocation of several nodes that runs Flux (``flux alloc -N4``, or ``srun -N4 -n4
    --mpi=pmi2 flux start python script.py`` where Slurm is the system's scheduler). The MPI program is
    the Flux job itself: there is no ``mpiexec`` and no ``srun`` in its command.

What to edit
    MPI_ENVIRONMENT, for what the MPI library of the site wants set. Then say in each app how many nodes
    and ranks it needs::

        @bash_app
        def simulate(parsl_resource_specification={"num_nodes": 2, "num_tasks": 128}):
            return "./simulate input.dat"

What an enclosing Slurm, PALS or mpiexec has set for its own ranks does not reach the jobs;
``docs/mpi.md`` has the list, and notes on Intel MPI, Cray MPICH and Open MPI.
"""

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor

MPI_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

config = Config(
    executors=[
        FluxBulkExecutor(
            label="mpi",
            environment=MPI_ENVIRONMENT,
        )
    ]
)
