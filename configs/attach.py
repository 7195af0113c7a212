"""A Flux instance that is running already, named by its URI or by ``FLUX_URI``.

When to use it
    * Inside ``flux alloc``, ``flux batch`` or ``flux start``: ``FLUX_URI`` is set there, and nothing
      has to be edited.
    * From a login node, with an instance that runs in an allocation: put the URI that
      ``flux uri --remote JOBID`` prints into INSTANCE, such as ``ssh://node17/tmp/flux-a1b2/local-0``.

What to edit
    INSTANCE, in the second case. Without it, and without ``FLUX_URI``, this configuration says what
    is missing when it is loaded with ``parsl.load``.

The instance must be your own: guests of a system instance may not submit the jobs that this needs.
"""

import os

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor

INSTANCE = os.environ.get("FLUX_URI", "local:///path/that/flux-uri/prints")

config = Config(
    executors=[
        FluxBulkExecutor(
            label="attach",
            instance=INSTANCE,
        )
    ]
)
