"""A Flux instance, attached to or owned: the only package that imports Flux's bindings.

May import `instances.base`, `jobspec` and `protocol`.
"""

from parsl_flux_bulk.instances.flux.instance import FluxInstance

__all__ = ["FluxInstance"]
