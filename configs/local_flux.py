"""A Flux instance of our own on this one machine, started with the script and ended with it.

When to use it
    On a workstation, or a node of an allocation, that has the ``flux`` command: the scheduler and the
    job shell are Flux's own, so MPI programs and GPUs are served as on a cluster.

What to edit
    Nothing has to be. ``max_active_jobs`` bounds the jobs inside the instance at one time; the rest
    wait in the script.

Needs ``pip install 'parsl-flux-bulk[flux]'`` with flux-python of the same version as flux-core.
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
