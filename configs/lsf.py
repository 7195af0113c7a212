"""LSF with ``jsrun``: each block is one LSF job and one Flux instance.

When to use it
    On IBM machines with LSF and Job Step Manager (such as Lassen and Sierra) where Flux and its plugin
    ``flux-pmix`` are installed. The script runs on a login node.

What to edit
    ``queue``, ``project``, ``walltime``, the numbers of blocks and nodes, and ``worker_init``, which must
    make ``flux`` and this Python's packages available on the compute nodes.

``jsrun`` starts one broker on each node, with all of the node's cores and GPUs (``-c ALL_CPUS
-g ALL_GPUS``; see the jsrun command in IBM's documentation of Job Step Manager). ``jsrun`` offers PMIx only,
so ``FLUX_PMI_CLIENT_METHODS`` makes Flux try the client of https://github.com/flux-framework/flux-pmix.
"""

from parsl.config import Config
from parsl.launchers import JsrunLauncher
from parsl.providers import LSFProvider

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="lsf",
            provider=LSFProvider(
                queue="QUEUE",
                project="PROJECT",
                nodes_per_block=2,
                init_blocks=1,
                min_blocks=0,
                max_blocks=4,
                walltime="01:00:00",
                worker_init=(
                    "module load flux && source ~/venv/bin/activate\n"
                    'export FLUX_PMI_CLIENT_METHODS="simple pmix single"'
                ),
                launcher=JsrunLauncher(overrides="-a 1 -c ALL_CPUS -g ALL_GPUS --bind=none"),
            ),
        )
    ],
    retries=1,
)
