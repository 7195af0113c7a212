"""Bulk jobs and Parsl tasks through Flux.

Names are imported when they are first used, so that ``bulksubmit`` and the workers, which need no
Parsl, do not pay for importing it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from parsl_flux_bulk.version import __version__

if TYPE_CHECKING:
    from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture
    from parsl_flux_bulk.executor.executor import FluxBulkExecutor
    from parsl_flux_bulk.executor.progress import progress
    from parsl_flux_bulk.pool.executor import FluxPoolExecutor

__all__ = ["BulkSubmitter", "FluxBulkExecutor", "FluxPoolExecutor", "JobFuture", "__version__", "progress"]

_MODULES = {
    "BulkSubmitter": "parsl_flux_bulk.bulk",
    "FluxBulkExecutor": "parsl_flux_bulk.executor",
    "FluxPoolExecutor": "parsl_flux_bulk.pool.executor",
    "JobFuture": "parsl_flux_bulk.bulk",
    "progress": "parsl_flux_bulk.executor.progress",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
