"""One instance made of others that come and go: blocks, or instances inside a Flux instance.

May import `instances.base`, `instances.flux`, `jobspec`, `worker` and `protocol`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl_flux_bulk.instances.federation.federation import Federation

__all__ = ["Federation"]

_MODULES = {
    "Federation": "parsl_flux_bulk.instances.federation.federation",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
