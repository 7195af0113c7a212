"""This machine alone: its own cores, no Flux, nothing to install but parsl-flux-bulk.

When to use it
    On a laptop or a workstation, in continuous integration, and to try a workflow that will run on a
    cluster: apps, resource specifications and errors are the same there.

What to edit
    Nothing has to be. ``working_dir`` is where apps start; ``environment`` adds variables to theirs.

Uses the cores that the process may use (``taskset`` and control groups are respected).
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
