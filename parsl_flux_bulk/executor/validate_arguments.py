"""Check the arguments of an executor: their ranges, and what excludes each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

from parsl.providers.base import ExecutionProvider

from parsl_flux_bulk.executor.reserved_variables import refuse_reserved
from parsl_flux_bulk.jobspec.duration import check_seconds

BASH_APPS = ("native", "python")

ISOLATION = ("worker", "task")


def validate_arguments(
    *,
    instance: object,
    provider: ExecutionProvider | None,
    tasks_per_job: int | None,
    max_active_jobs: int | None,
    max_workers: int | None,
    max_pending_tasks: int | None,
    max_workers_per_node: int | None,
    cores_per_worker: float,
    tasks_per_worker: int | None,
    isolation: str,
    bash_apps: str,
    worker_idle_time: float | None,
    environment: Mapping[str, str],
) -> None:
    """Raise ValueError for an argument of FluxBulkExecutor that is out of its range."""
    if provider is not None and instance not in (None, "local"):
        raise ValueError(f"with a provider, instance must be None or 'local', not {instance!r}")
    if tasks_per_job not in (None, 1):
        raise ValueError(f"tasks_per_job must be 1 or None, not {tasks_per_job}")
    for name, value in (
        ("max_active_jobs", max_active_jobs),
        ("max_workers", max_workers),
        ("max_pending_tasks", max_pending_tasks),
        ("max_workers_per_node", max_workers_per_node),
        ("tasks_per_worker", tasks_per_worker),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, or None, not {value}")
    if not 0 < cores_per_worker < math.inf:
        raise ValueError(f"cores_per_worker must be a number such as 2 or 0.5, not {cores_per_worker}")
    if cores_per_worker != 1 and tasks_per_job == 1:
        raise ValueError(
            f"with tasks_per_job=1 there are no workers: cores_per_worker must be 1, not {cores_per_worker}"
        )
    if isolation not in ISOLATION:
        raise ValueError(f"isolation must be {' or '.join(map(repr, ISOLATION))}, not {isolation!r}")
    if isolation == "task" and tasks_per_worker not in (None, 1):
        raise ValueError(
            "with isolation='task' a worker runs one task, so tasks_per_worker must be None, "
            f"not {tasks_per_worker}"
        )
    if bash_apps not in BASH_APPS:
        raise ValueError(f"bash_apps must be {' or '.join(map(repr, BASH_APPS))}, not {bash_apps!r}")
    if worker_idle_time is not None:
        check_seconds("worker_idle_time", worker_idle_time)
    refuse_reserved(environment, instance)
