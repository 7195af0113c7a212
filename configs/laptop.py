"""This machine's own cores, without Flux. Nothing needs to be installed but parsl-flux-bulk.

When to use it
    On a laptop or a workstation, in continuous integration, and to try a workflow that will later run on a
    cluster: apps, resource specifications and errors are the same there.

What to edit
    Nothing. Optionally, ``working_dir`` sets the directory for the output of jobs and workers, and
    ``environment`` adds variables to the environment of the apps.

The executor uses the cores in the process's CPU affinity mask, which ``taskset`` and cpusets restrict.
"""

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor

config = Config(
    executors=[
        FluxBulkExecutor(
            label="laptop",
            instance="local",
        )
    ]
)
