"""Aurora (ALCF): blocks of whole nodes through PBS Pro; each block is one Flux instance.

When to use it
    From a login node of Aurora, with a Flux that you installed (Spack, or ``flux-core`` from conda-forge).
    Start the script in a project directory on Flare. For Polaris, change ``cpus_per_node``, ``queue`` and
    ``filesystems``.

What to edit
    ACCOUNT, ``queue`` (``debug`` takes one or two nodes for up to an hour; ``prod`` takes larger jobs),
    ``filesystems``, ``walltime``, the numbers of blocks and nodes, and ``worker_init``.

A node has 208 hardware threads. ``mpiexec`` is HPE PALS's, hence ``--cpu-bind`` and ``--ppn``:
https://docs.alcf.anl.gov/aurora/workflows/parsl and https://docs.alcf.anl.gov/aurora/running-jobs-aurora.
``--pmi=pmi`` selects the PMI with which the brokers find each other, as in
https://github.com/flux-framework/flux-core/issues/7164. To test it in a job of two nodes, run
``mpiexec -n 2 --ppn 1 --pmi=pmi flux pmi barrier``.
"""

from parsl.config import Config
from parsl.launchers import MpiExecLauncher
from parsl.providers import PBSProProvider

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="aurora",
            provider=PBSProProvider(
                account="ACCOUNT",
                queue="debug",
                nodes_per_block=2,
                cpus_per_node=208,
                init_blocks=1,
                min_blocks=0,
                max_blocks=1,
                walltime="00:30:00",
                scheduler_options="#PBS -l filesystems=home:flare\n#PBS -l place=scatter",
                worker_init="source ~/venv/bin/activate",
                launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--ppn 1 --pmi=pmi"),
            ),
        )
    ],
    retries=1,
)
