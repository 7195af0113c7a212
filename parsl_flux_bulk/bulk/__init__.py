"""Jobs without Parsl: `BulkSubmitter` turns jobspecs and commands into jobs, with a future for each.

May import `pipeline`, `instances`, `blocks`, `jobspec` and `protocol`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture

__all__ = ["BulkSubmitter", "JobFuture"]

_MODULES = {
    "BulkSubmitter": "parsl_flux_bulk.bulk.submitter",
    "JobFuture": "parsl_flux_bulk.bulk.submitter",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
