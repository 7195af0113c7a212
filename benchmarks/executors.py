"""The executors that are compared, two workers each; and the configuration that parsl-perf loads.

Which one is said by the environment: BENCHMARK_EXECUTOR names it, BENCHMARK_URI is the Flux instance
that is running already, for those that attach to one.
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

NEED_FLUX = {ATTACHED, OWN, JOBS, PARSL_FLUX, EXECUTORLIB}
ATTACH = {ATTACHED, JOBS, EXECUTORLIB}
"""Those that get a fresh Flux instance, which is running before they start."""


def ours(**arguments: Any) -> Any:
    """Ours, on the running instance unless `arguments` say otherwise."""
    from parsl_flux_bulk import FluxBulkExecutor

    return FluxBulkExecutor(**{"instance": os.environ.get("BENCHMARK_URI"), **arguments})


def parsl_flux() -> Any:
    """One Flux job a task, in an instance that it starts itself."""
    from parsl.executors import FluxExecutor

    return FluxExecutor()


def htex() -> Any:
    """A manager with as many workers, on this machine."""
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    return HighThroughputExecutor(
        max_workers_per_node=WORKERS,
        loopback_address="127.0.0.1",
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )


def threads() -> Any:
    """Parsl's, in this process."""
    from parsl.executors import ThreadPoolExecutor

    return ThreadPoolExecutor(max_threads=WORKERS)


PARSL_EXECUTORS: dict[str, Callable[[], Any]] = {
    ATTACHED: ours,
    OWN: lambda: ours(instance="flux"),
    JOBS: lambda: ours(tasks_per_job=1),
    PARSL_FLUX: parsl_flux,
    HTEX: htex,
    THREADS: threads,
}


def parsl_executor(name: str) -> Any:
    """Make an executor for Parsl."""
    return PARSL_EXECUTORS[name]()


def fresh_config() -> Config:
    """What parsl-perf loads."""
    return Config(executors=[parsl_executor(os.environ["BENCHMARK_EXECUTOR"])])
