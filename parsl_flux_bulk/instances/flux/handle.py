"""Flux handles: open one, tell a lost broker from a refused request, and list the instance's resources."""

from __future__ import annotations

import errno
from typing import Any

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import Capacity

LOST_HINT = "its broker ended, or the allocation that it ran in is over"

_LOST = {
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ECONNREFUSED,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.EHOSTUNREACH,
}


def import_bindings() -> None:
    """Import Flux's Python bindings.

    Raises
    ------
    InstanceUnavailable
        Names the package to install.
    """
    try:
        import flux.job  # noqa: F401
    except ImportError as error:
        raise InstanceUnavailable(
            f"Flux's Python bindings cannot be imported ({error}). Install the ones of the same version "
            "as flux-core: pip install flux-python==VERSION ply pyyaml (`flux version` prints VERSION)."
        ) from error


def open_handle(uri: str | None) -> Any:
    """Open a handle to the instance at `uri`; None is the enclosing instance. Raises OSError."""
    import flux

    return flux.Flux(uri) if uri else flux.Flux()


def raise_if_lost(error: OSError) -> None:
    """Raise InstanceLost if `error` means that the connection to the broker is lost."""
    if error.errno in _LOST:
        raise InstanceLost(f"lost the connection to Flux ({error.strerror or error}): {LOST_HINT}") from error


def capacity_of(handle: Any) -> Capacity:
    """Return the resources that are up. Raises OSError."""
    from flux.resource import resource_list

    up = resource_list(handle).get().up
    return Capacity(nodes=up.nnodes, cores=up.ncores, gpus=up.ngpus)
