"""PBS Pro or OpenPBS: each block is one PBS job and one Flux instance.

When to use it
    On a cluster with PBS, MPICH's ``mpiexec``, and Flux. The script runs on a login node. On HPE Cray
    machines, start from ``aurora.py``.

What to edit
    ``queue``, ``account``, ``walltime``, ``cpus_per_node`` (PBS's ``ncpus`` of your nodes), the numbers of
    blocks and nodes, and ``worker_init``, which must make ``flux``, ``mpiexec`` and this Python's packages
    available on the compute nodes.

The brokers of a block find each other through the PMI of Hydra, MPICH's process manager, as in the first
example of flux-start(1). ``-ppn 1`` starts one broker on each node. Open MPI's ``mpiexec`` offers PMIx only;
Flux then needs its plugin ``flux-pmix`` (https://github.com/flux-framework/flux-pmix).
"""

from parsl.config import Config
from parsl.launchers import MpiExecLauncher
from parsl.providers import PBSProProvider

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="pbs",
            provider=PBSProProvider(
                queue="QUEUE",
                account="ACCOUNT",
                nodes_per_block=2,
                cpus_per_node=64,
                init_blocks=1,
                min_blocks=0,
                max_blocks=4,
                walltime="01:00:00",
                worker_init="module load flux mpich && source ~/venv/bin/activate",
                launcher=MpiExecLauncher(overrides="-ppn 1"),
            ),
        )
    ],
    retries=1,
)
