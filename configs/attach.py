"""Use a Flux instance that is already running: the one in ``FLUX_URI``, or the one at a given URI.

When to use it
    * Inside ``flux alloc``, ``flux batch`` or ``flux start``. Flux sets ``FLUX_URI`` there, so nothing
      needs to be edited.
    * From a login node, with an instance that runs in an allocation. Set INSTANCE to the URI that
      ``flux uri --remote JOBID`` prints, such as ``ssh://node17/tmp/flux-a1b2/local-0``.

What to edit
    INSTANCE, in the second case. If neither INSTANCE nor ``FLUX_URI`` is set, ``parsl.load`` raises
    ``InstanceUnavailable``, whose message says how to find the URI.

You must own the instance: guests of a system instance may not submit waitable jobs.
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
