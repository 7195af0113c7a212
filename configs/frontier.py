"""Frontier (OLCF): blocks of whole nodes through Slurm; each block is one Flux instance.

When to use it
    From a login node of Frontier, with the site's Flux or one that you installed. Start the script in your
    project's directory on Orion, the file system that the compute nodes share.

What to edit
    ACCOUNT (your project), ``walltime``, the numbers of blocks and nodes, and ``worker_init``. Flux detects
    GPUs only with an hwloc that supports them.

A node has 64 cores, of which core specialization leaves 56 to jobs, and 8 GPUs (GCDs). The Frontier User
Guide, section "Flux in a Slurm allocation", starts one broker on each node with ``srun -c 56
--gpus-per-node=8``, as here: https://docs.olcf.ornl.gov/systems/frontier_user_guide.html
"""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="frontier",
            provider=SlurmProvider(
                account="ACCOUNT",
                partition="batch",
                nodes_per_block=4,
                init_blocks=1,
                min_blocks=0,
                max_blocks=2,
                walltime="02:00:00",
                cmd_timeout=60,
                worker_init="module load rocm hwloc/2.9.1-gpu flux && source ~/venv/bin/activate",
                launcher=SrunLauncher(overrides="-c 56 --gpus-per-node=8"),
            ),
        )
    ],
    retries=1,
)
