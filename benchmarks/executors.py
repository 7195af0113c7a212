"""Define the compared executors, with two workers each, and the configuration that parsl-perf loads.

The environment variable BENCHMARK_EXECUTOR names the executor; BENCHMARK_URI is the URI of the running Flux
instance for the executors that attach to one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from parsl.config import Config

WORKERS = 2

ATTACHED = "FluxBulkExecutor"
OWN = "FluxBulkExecutor, own instance"
JOBS = "FluxBulkExecutor, tasks_per_job=1"
PARSL_FLUX = "Parsl FluxExecutor"
HTEX = "HighThroughputExecutor"
THREADS = "ThreadPoolExecutor"
PROCESSES = "ProcessPoolExecutor"
EXECUTORLIB = "executorlib FluxJobExecutor"
POOL = "FluxPoolExecutor"
EMBEDDED_POOL = "FluxPoolExecutor, embedded"
RAY = "Ray"
LOKY = "loky"

OTHERS = (PROCESSES, EXECUTORLIB, POOL, EMBEDDED_POOL, RAY, LOKY)
"""Executors without Parsl."""

PACKAGES = {EXECUTORLIB: "executorlib", RAY: "ray", LOKY: "joblib"}
"""The package that an executor needs."""

NEED_FLUX = {ATTACHED, OWN, JOBS, PARSL_FLUX, EXECUTORLIB, POOL}
ATTACH = {ATTACHED, JOBS, EXECUTORLIB, POOL}
"""Executors for which a fresh Flux instance is started first."""


def flux_bulk(**arguments: Any) -> Any:
    """Make a FluxBulkExecutor, on the running instance unless `arguments` name another."""
    from parsl_flux_bulk import FluxBulkExecutor

    return FluxBulkExecutor(**{"instance": os.environ.get("BENCHMARK_URI"), **arguments})


def pool(name: str) -> Any:
    """Make a FluxPoolExecutor."""
    from parsl_flux_bulk import FluxPoolExecutor

    return FluxPoolExecutor(WORKERS, instance=os.environ["BENCHMARK_URI"] if name == POOL else "local")


def parsl_flux() -> Any:
    """Make Parsl's FluxExecutor: one Flux job for each task, in an instance that it starts."""
    from parsl.executors import FluxExecutor

    return FluxExecutor()


def htex() -> Any:
    """Make a HighThroughputExecutor with one manager on this machine."""
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    return HighThroughputExecutor(
        max_workers_per_node=WORKERS,
        loopback_address="127.0.0.1",
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )


def threads() -> Any:
    """Make a ThreadPoolExecutor of Parsl."""
    from parsl.executors import ThreadPoolExecutor

    return ThreadPoolExecutor(max_threads=WORKERS)


PARSL_EXECUTORS: dict[str, Callable[[], Any]] = {
    ATTACHED: flux_bulk,
    OWN: lambda: flux_bulk(instance="flux"),
    JOBS: lambda: flux_bulk(tasks_per_job=1),
    PARSL_FLUX: parsl_flux,
    HTEX: htex,
    THREADS: threads,
}


def parsl_executor(name: str) -> Any:
    """Make the executor of this name."""
    return PARSL_EXECUTORS[name]()


def fresh_config() -> Config:
    """Make the configuration for parsl-perf."""
    return Config(executors=[parsl_executor(os.environ["BENCHMARK_EXECUTOR"])])
