"""Refuse environment variables that the instance or the worker sets in every job."""

from __future__ import annotations

from collections.abc import Iterable

from parsl_flux_bulk.instances.local.client import LocalInstance
from parsl_flux_bulk.protocol import variables

BY_EMBEDDED = frozenset(
    f"FLUX_{name}"
    for name in ("JOB_ID", "JOB_NNODES", "JOB_SIZE", "JOB_TMPDIR", "TASK_LOCAL_ID", "TASK_RANK")
)
"""Set by the embedded instance."""

BY_FLUX = BY_EMBEDDED | {
    "CUDA_VISIBLE_DEVICES",
    "FLUX_JOB_ID_PATH",
    "FLUX_KVS_NAMESPACE",
    "FLUX_PMI_LIBRARY_PATH",
    "FLUX_PROXY_REMOTE",
    "FLUX_TERMINUS_SESSION",
    "FLUX_URI",
    "OMPI_MCA_btl_vader_backing_directory",
    "PMI_FD",
    "PMI_RANK",
    "PMI_SIZE",
}
"""Set, or removed, by flux-core 0.88: seen with ``flux run --env=NAME=x env``."""

_WORKER = frozenset({"PARSL_WORKER_COUNT", "PARSL_WORKER_POOL_ID", "PARSL_WORKER_RANK"})

_WAYS = {
    "CUDA_VISIBLE_DEVICES": "ask for GPUs with 'gpus_per_task' in the resource specification. A task with a "
    "job of its own may set the variable: with 'environment' beside 'shell_options': {'gpu-affinity': 'off'}",
    "FLUX_URI": "where jobs run is the parameter 'instance'",
}


def refuse_reserved(environment: Iterable[str], instance: object) -> None:
    """Raise ValueError for names of variables whose values the jobs of an executor would not have.

    Parameters
    ----------
    environment : iterable of str
    instance : object
        The executor's argument of that name.
    """
    embedded = instance == "local" or isinstance(instance, LocalInstance)
    reserved = BY_EMBEDDED if embedded else BY_FLUX
    if isinstance(instance, LocalInstance) and instance.gpus:
        reserved |= {"CUDA_VISIBLE_DEVICES"}
    for name in environment:
        if name in reserved:
            who = "the embedded instance" if embedded else "Flux"
            way = _WAYS.get(name, "leave it out")
            raise ValueError(f"environment: {name} is set by {who} in each job: {way}")
        if name in _WORKER or name.startswith(variables.PREFIX):
            raise ValueError(
                f"environment: {name} is set by the executor in each job: leave the variable out"
            )
