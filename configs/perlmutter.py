"""Perlmutter (NERSC): blocks of CPU nodes through Slurm; each block is one Flux instance.

When to use it
    From a login node of Perlmutter, with a Flux that you installed, because NERSC has no Flux module
    (``conda create -n flux -c conda-forge flux-core``, or Spack).

What to edit
    ACCOUNT, ``qos`` (``debug`` for tests, ``regular`` for most work), ``walltime``, the numbers of blocks and
    nodes, and ``worker_init``. For GPU nodes, set ``constraint="gpu"`` and ``gpus_per_node=4``.

A CPU node has two 64-core AMD EPYC 7763; a GPU node has one of them and four A100
(https://docs.nersc.gov/systems/perlmutter/architecture). For queues and their limits, see
https://docs.nersc.gov/jobs/policy.
"""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="perlmutter",
            provider=SlurmProvider(
                account="ACCOUNT",
                qos="regular",
                constraint="cpu",
                nodes_per_block=4,
                init_blocks=1,
                min_blocks=0,
                max_blocks=2,
                walltime="02:00:00",
                cmd_timeout=60,
                worker_init="module load conda && conda activate flux",
                launcher=SrunLauncher(overrides="--mpi=pmi2 --cpu-bind=none"),
            ),
        )
    ],
    retries=1,
)
