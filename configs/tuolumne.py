"""Tuolumne, El Capitan and other machines whose system scheduler is Flux: blocks through ``flux batch``.

When to use it
    From a login node of such a machine. Each block is a ``flux batch`` job, which brings its own nested Flux
    instance; the executor starts no other. Flux is part of the system; install flux-python of the version
    that ``flux version`` prints.

What to edit
    ``queue`` (``flux queue list`` lists the names), ``bank``, ``walltime``, the numbers of blocks and nodes,
    and ``worker_init``.

A node has four MI300A, each one GPU with 21 cores for users
(https://hpc.llnl.gov/documentation/user-guides/using-el-capitan-systems). If the script itself runs inside
``flux alloc``, use ``attach.py``.
"""

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.providers import FluxProvider

config = Config(
    executors=[
        FluxBulkExecutor(
            label="tuolumne",
            provider=FluxProvider(
                queue="pdebug",
                bank="BANK",
                nodes_per_block=2,
                init_blocks=1,
                min_blocks=0,
                max_blocks=4,
                walltime="01:00:00",
                worker_init="source ~/venv/bin/activate",
            ),
        )
    ],
    retries=1,
)
