"""Aurora (ALCF): blocks of whole nodes through PBS Pro, each one Flux instance.

When to use it
    From a login node of Aurora, with a Flux of your own (Spack, or conda-forge's ``flux-core``). Start the
    script in a project directory on Flare. Polaris differs in numbers and names only: ``cpus_per_node``,
    ``queue`` and ``filesystems``.

What to edit
    ACCOUNT, ``queue`` (``debug`` takes one or two nodes for up to an hour, ``prod`` everything else),
    ``filesystems``, ``walltime``, the numbers of blocks and nodes, and ``worker_init``.

A node has 208 hardware threads. ``mpiexec`` is that of HPE's PALS, hence ``--cpu-bind`` and ``--ppn``:
https://docs.alcf.anl.gov/aurora/workflows/parsl and https://docs.alcf.anl.gov/aurora/running-jobs-aurora.
``--pmi=pmi`` chooses what Flux bootstraps by, as in https://github.com/flux-framework/flux-core/issues/7164;
``mpiexec -n 2 --ppn 1 --pmi=pmi flux pmi barrier`` in a job of two nodes shows whether it does.
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
