"""An executor's environment is refused where jobs would not have it."""

from __future__ import annotations

import pytest

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.instances.local import LocalInstance


@pytest.mark.parametrize(
    ("name", "instance", "said"),
    [
        ("CUDA_VISIBLE_DEVICES", None, "set by Flux in each job: ask for GPUs with 'gpus_per_task'"),
        ("CUDA_VISIBLE_DEVICES", LocalInstance(gpus=1), "set by the embedded instance in each job"),
        ("FLUX_URI", "flux", "the parameter 'instance'"),
        ("FLUX_JOB_ID", "local", "set by the embedded instance"),
        ("PMI_RANK", None, "leave it out"),
        ("PARSL_WORKER_RANK", None, "set by the executor"),
        ("PARSL_FLUX_BULK_TOKEN", "local", "set by the executor"),
    ],
)
def test_variables_that_would_be_overwritten(name: str, instance: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"environment: {name} is {said}|{said}"):
        FluxBulkExecutor(instance=instance, environment={name: "0"})


@pytest.mark.parametrize("instance", ["local", LocalInstance()])
def test_without_gpus_the_embedded_instance_leaves_their_variable_alone(instance: object) -> None:
    FluxBulkExecutor(instance=instance, environment={"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1"})
