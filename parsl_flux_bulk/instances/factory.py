"""Choose the instance to use: the one that the user names, or by the environment."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.base import Instance

logger = logging.getLogger(__name__)


def choose_instance(spec: Instance | str | None) -> Instance:
    """Return the instance that `spec` names, not started.

    Parameters
    ----------
    spec : Instance or str or None
        * an instance: that one;
        * ``"local"``: the embedded instance, on the cores that this process may use;
        * ``"flux"``: a new Flux instance on this machine, which ends with this process;
        * a URI (``local:///run/flux/local``, ``ssh://login/run/flux/local``; flux-uri(1)): the
          running Flux instance there;
        * None: in a task or job of an instance, a new instance on the cores that the task has: jobs in the
          outer instance would wait for cores that the task itself holds. Otherwise the instance at the URI
          in ``FLUX_URI``; else, with a ``flux`` command on PATH, a new Flux
          instance; else the embedded one. One log line tells which, and why.

    Raises
    ------
    ValueError
        For any other string.
    InstanceUnavailable
        For None, if ``FLUX_URI`` is not a URI.
    """
    if spec is None:
        return _choose()
    if not isinstance(spec, str):
        return spec
    if spec == "local":
        from parsl_flux_bulk.instances.local.client import LocalInstance

        return LocalInstance()
    from parsl_flux_bulk.instances.flux.instance import FluxInstance

    if spec == "flux":
        return FluxInstance.own()
    if ":" in spec:
        return FluxInstance.attach(spec)
    raise ValueError(
        f"instance={spec!r} is not an instance: give 'local' (this machine alone), 'flux' (a new Flux "
        "instance on this machine), a URI such as 'local:///run/flux/local' or 'ssh://host/path', or None "
        "to choose"
    )


def _choose() -> Instance:
    uri = os.environ.get("FLUX_URI")
    # The broker removes this variable from what runs in the instance but not in a job: scripts in
    # `flux start`, `flux alloc` and `flux batch`.
    job = os.environ.get("FLUX_JOB_ID")
    if job:
        return _on_own_cores(f"this process is part of the job {job}, and has cores of its own")
    if uri:
        if ":" not in uri:
            raise InstanceUnavailable(
                f"FLUX_URI={uri!r} is not a URI such as 'local:///run/flux/local' or 'ssh://host/path'; "
                "unset FLUX_URI, set it to what `flux uri` prints, or name another instance"
            )
        logger.info("instance chosen uri=%s: FLUX_URI is set", uri)
        return choose_instance(uri)
    return _on_own_cores("FLUX_URI is not set")


def _on_own_cores(why: str) -> Instance:
    """Choose an instance that starts with this process, on the cores that this process may use."""
    if shutil.which("flux") is None:
        logger.info("instance chosen instance=local: no flux command on PATH, and %s", why)
        return choose_instance("local")
    if importlib.util.find_spec("flux") is None:
        # A warning, because a user with Flux will want to know.
        logger.warning(
            "instance chosen instance=local: flux is on PATH, but its Python bindings are missing "
            "(pip install flux-python==VERSION ply pyyaml; `flux version` prints VERSION)"
        )
        return choose_instance("local")
    logger.info("instance chosen instance=flux: flux is on PATH, and %s", why)
    return choose_instance("flux")
