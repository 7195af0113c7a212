"""Choosing the instance where nobody named one, and finding the one that somebody named."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

from parsl_flux_bulk.instances.base import Instance

logger = logging.getLogger(__name__)


def choose_instance(spec: Instance | str | None) -> Instance:
    """Return the instance that `spec` names; nothing is started yet.

    Parameters
    ----------
    spec : Instance or str or None
        * an instance: that one;
        * ``"local"``: the embedded instance, on the cores that this process may use;
        * ``"flux"``: a Flux instance of our own, started on this machine;
        * a URI (``local:///run/flux/local``, ``ssh://login/run/flux/local``; flux-uri(1)): the
          running Flux instance there;
        * None: the instance in ``FLUX_URI``; else, where there is a ``flux`` command, one of our
          own; else the embedded one. One line of the log tells which, and why.

    Raises
    ------
    ValueError
        For a string that is none of these.
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
        f"instance={spec!r} names no instance: give 'local' (this machine alone), 'flux' (a Flux instance "
        "of our own), a URI such as 'local:///run/flux/local' or 'ssh://host/path', or None to choose"
    )


def _choose() -> Instance:
    uri = os.environ.get("FLUX_URI")
    if uri:
        logger.info("instance: the Flux instance at %s, because FLUX_URI is set", uri)
        return choose_instance(uri)
    if shutil.which("flux") is None:
        logger.info("instance: embedded, because there is neither FLUX_URI nor a flux command on PATH")
        return choose_instance("local")
    if importlib.util.find_spec("flux") is None:
        # Not asked for by name, so not an error; but whoever has Flux will want to know.
        logger.warning(
            "instance: embedded, although flux is on PATH, because its Python bindings are missing "
            "(pip install 'parsl-flux-bulk[flux]')"
        )
        return choose_instance("local")
    logger.info("instance: a Flux instance of our own, because flux is on PATH and FLUX_URI is not set")
    return choose_instance("flux")
