"""Whether jobs are packed, unless the user says."""

from __future__ import annotations

from parsl_flux_bulk.instances.base import Instance

PACKED_FROM = 100
"""Number of jobs from which they are packed by default, in an instance that starts for the run."""


def packs_by_default(instance: Instance, jobs: int) -> bool:
    """Tell whether to pack so many jobs, unless the user says otherwise.

    Only in an owned instance: users look for their jobs in an instance that they attached to.
    """
    # Only a Flux instance may be owned; its class is not imported where there is no Flux.
    return getattr(instance, "owned", False) and jobs >= PACKED_FROM
