"""The embedded instance: this machine's own cores, run by a server process.

May import `instances.base`, `jobspec` and `protocol`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl_flux_bulk.instances.local.client import LocalInstance

__all__ = ["LocalInstance"]

_MODULES = {
    "LocalInstance": "parsl_flux_bulk.instances.local.client",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
