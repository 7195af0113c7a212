"""The resources of a task of an executor: its specification, with the defaults of the executor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from parsl.executors.errors import InvalidResourceSpecification

from parsl_flux_bulk.jobspec.resources import Resources


def not_a_specification(value: object) -> TypeError:
    """Return the error for something else in place of a resource specification."""
    if value is inspect.Parameter.empty:  # Parsl passes on the default of the app's parameter
        return TypeError(
            "the app's parameter parsl_resource_specification has no default: write "
            "parsl_resource_specification={}, or give one in each call"
        )
    return TypeError(
        f"resource_specification must be a dictionary, not {value!r}: call "
        "submit(function, {}, *args), or use FluxPoolExecutor, whose submit takes the arguments alone"
    )


class TaskResources:
    """Read resource specifications; base class of FluxBulkExecutor."""

    tasks_per_job: int | None
    cores_per_worker: float

    def resources_of(self, specification: Mapping[str, Any]) -> Resources:
        """Read a ``parsl_resource_specification``.

        Raises
        ------
        parsl.executors.errors.InvalidResourceSpecification
            Names the key, its value, and what would be right.
        """
        resources = Resources.from_specification(specification)
        shape = resources.shape
        if shape is None:
            return resources
        if self.tasks_per_job == 1:
            for key, value in (("cores_per_task", shape.cores), ("gpus_per_task", shape.gpus)):
                if isinstance(value, float):
                    raise InvalidResourceSpecification(
                        {key},
                        f"{key!r}: {value} must be an integer with tasks_per_job=1: a job of its own has "
                        "whole cores and GPUs. Only workers share them: leave tasks_per_job out",
                    )
        elif self.cores_per_worker != 1 and specification.get("cores_per_task") is None:
            return Resources.from_specification({**specification, "cores_per_task": self.cores_per_worker})
        return resources

    def validate_resource_spec(self, resource_specification: dict[str, Any]) -> None:
        """Raise InvalidResourceSpecification unless `submit` would take a resource specification."""
        self.resources_of(resource_specification)
