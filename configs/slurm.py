"""Slurm: the script runs on a login node; each block is one Slurm job and one Flux instance.

When to use it
    On any cluster with Slurm where Flux is installed (module, Spack, or ``flux-core`` from conda-forge).
    Parsl scales between ``min_blocks`` and ``max_blocks`` Slurm jobs of ``nodes_per_block`` nodes each.

What to edit
    ``partition``, ``account``, ``walltime``, the numbers of blocks and nodes, and ``worker_init``, which
    must make ``flux`` and this Python's packages available on the compute nodes.

``--mpi=pmi2`` lets the brokers of a block find each other; without it each node becomes an instance of its
own. ``srun --mpi=list`` prints whether your Slurm supports pmi2. ``--cpu-bind=none`` leaves all cores of a
node to Flux. Both are options of srun(1); flux-start(1) describes how Flux starts under srun.
"""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="slurm",
            provider=SlurmProvider(
                partition="PARTITION",
                account="ACCOUNT",
                nodes_per_block=2,
                init_blocks=1,
                min_blocks=0,
                max_blocks=4,
                walltime="01:00:00",
                worker_init="module load flux && source ~/venv/bin/activate",
                launcher=SrunLauncher(overrides="--mpi=pmi2 --cpu-bind=none"),
            ),
        )
    ],
    retries=1,
)
