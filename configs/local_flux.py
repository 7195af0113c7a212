"""A Flux instance on this machine that starts and ends with the script.

When to use it
    On a workstation, or on one node of an allocation, with the ``flux`` command. Flux's own scheduler and
    job shell run the jobs, so MPI programs and GPUs work as on a cluster.

What to edit
    Nothing. Optionally, ``max_active_jobs`` bounds the number of jobs inside the instance; further jobs
    wait in the script's process.

Needs ``pip install flux-python==VERSION ply pyyaml``, with the VERSION that ``flux version`` prints.
"""

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="local_flux",
            instance="flux",
        )
    ]
)
