"""A Flux instance, attached to or owned: the only package that imports Flux's bindings.

May import `instances.base`, `jobspec` and `protocol`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl_flux_bulk.instances.flux.instance import FluxInstance

__all__ = ["FluxInstance"]

_MODULES = {
    "FluxInstance": "parsl_flux_bulk.instances.flux.instance",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
