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
        * None: the instance at the URI in ``FLUX_URI``; else, with a ``flux`` command on PATH, a new Flux
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
    if uri:
        if ":" not in uri:
            raise InstanceUnavailable(
                f"FLUX_URI={uri!r} is not a URI such as 'local:///run/flux/local' or 'ssh://host/path'; "
                "unset FLUX_URI, set it to what `flux uri` prints, or name another instance"
            )
        logger.info("instance chosen uri=%s: FLUX_URI is set", uri)
        return choose_instance(uri)
    if shutil.which("flux") is None:
        logger.info("instance chosen instance=local: no FLUX_URI, and no flux command on PATH")
        return choose_instance("local")
    if importlib.util.find_spec("flux") is None:
        # A warning, because a user with Flux will want to know.
        logger.warning(
            "instance chosen instance=local: flux is on PATH, but its Python bindings are missing "
            "(pip install flux-python==VERSION ply pyyaml; `flux version` prints VERSION)"
        )
        return choose_instance("local")
    logger.info("instance chosen instance=flux: flux is on PATH, and FLUX_URI is not set")
    return choose_instance("flux")
