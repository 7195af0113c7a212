"""MPI bash apps and MPI Python apps, each a Flux job, beside small tasks in warm workers.

When to use it
    Inside an allocation of several nodes that runs Flux: ``flux alloc -N4``, or, where Slurm is the system's
    scheduler, ``srun -N4 -n4 --mpi=pmi2 flux start python script.py``. Flux starts the MPI ranks itself:
    do not put ``mpiexec`` or ``srun`` into an app's command.

What to edit
    MPI_ENVIRONMENT, for variables that the site's MPI library needs. Then request nodes and ranks in each
    app::

        @bash_app
        def simulate(parsl_resource_specification={"num_nodes": 2, "num_tasks": 128}):
            return "./simulate input.dat"

Jobs do not inherit the variables that an enclosing Slurm, PALS or mpiexec sets for its own ranks.
``docs/mpi.md`` lists these variables, and has notes on Intel MPI, Cray MPICH and Open MPI.
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
