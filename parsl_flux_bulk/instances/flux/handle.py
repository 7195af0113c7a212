"""Flux handles: open one, tell a lost broker from a refused request, and list the instance's resources."""

from __future__ import annotations

import errno
import re
import subprocess
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
    """Import all of Flux's Python bindings that this package uses.

    Raises
    ------
    InstanceUnavailable
        Names both versions and the package to install.
    """
    try:
        import flux.constants
        import flux.core.inner
        import flux.job
        import flux.resource  # noqa: F401
    except Exception as error:  # ImportError; or others, if the module `flux` is another package
        raise InstanceUnavailable(_unusable(error)) from error


def _unusable(error: Exception) -> str:
    import importlib.metadata  # slow to import

    core = core_version()
    try:
        bindings = f"flux-python {importlib.metadata.version('flux-python')}"
    except importlib.metadata.PackageNotFoundError:
        bindings = "flux-python is not installed"
    return (
        f"Flux's Python bindings ({bindings}) cannot be imported beside flux-core {core or '(no version)'}: "
        f"{error}. Install those of the same version: pip install flux-python=={core or 'VERSION'} ply pyyaml"
        f"{'' if core else ' (`flux version` prints VERSION)'}"
    )


def core_version() -> str | None:
    """Return the version of the ``flux`` command on PATH, such as "0.88.0"; None if there is none."""
    try:
        shown = subprocess.run(["flux", "version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rb"^commands:\s*(\d+\.\d+\.\d+)", shown.stdout, re.MULTILINE)
    return found[1].decode() if found else None


def open_handle(uri: str | None) -> Any:
    """Open a handle to the instance at `uri`; None is the enclosing instance. Raises OSError."""
    import flux

    return flux.Flux(uri) if uri else flux.Flux()


def drop_future(future: Any) -> None:
    """Let go of a future whose callback is not to run any more; its reactor must not run again either."""
    from flux import future as bindings

    future.stop()
    # The bindings keep a future, and with it the handle, until its callback has run, which it never does once
    # the broker is lost. They offer no way to say so.
    getattr(bindings, "_THEN_HANDLES", {}).pop(future, None)


def raise_if_lost(error: OSError) -> None:
    """Raise InstanceLost if `error` means that the connection to the broker is lost."""
    if error.errno in _LOST:
        raise InstanceLost(f"lost the connection to Flux ({error.strerror or error}): {LOST_HINT}") from error


def capacity_of(handle: Any) -> Capacity:
    """Return the resources that are up. Raises OSError."""
    from flux.resource import resource_list

    return up_of(resource_list(handle).get())


def up_of(resources: Any) -> Capacity:
    """Return what is up of a `SchedResourceList`."""
    up = resources.up
    return Capacity(nodes=up.nnodes, cores=up.ncores, gpus=up.ngpus)


def free_of(resources: Any) -> tuple[tuple[int, int], ...]:
    """Return the free cores and GPUs of each node that is up and has any, of a `SchedResourceList`."""
    from flux.idset import IDset

    free: list[tuple[int, int]] = []
    for entry in resources.free.to_dict()["execution"]["R_lite"]:
        cores, gpus = (IDset(entry["children"].get(kind) or "").count() for kind in ("core", "gpu"))
        free += [(cores, gpus)] * IDset(entry["rank"]).count()
    return tuple(free)
