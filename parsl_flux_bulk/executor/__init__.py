"""Parsl's face: the executor, its calls and bash apps, scaling, and the runtime in the completion thread.

May import every package but `cli` and `bulk`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl_flux_bulk.executor.executor import FluxBulkExecutor

__all__ = ["FluxBulkExecutor"]

_MODULES = {
    "FluxBulkExecutor": "parsl_flux_bulk.executor.executor",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
