"""GPUs: tasks that run at the same time see different ones, in jobs of their own and in warm workers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import apps
import helpers
import parsl
import pytest
from commands import command
from parsl.executors.errors import InvalidResourceSpecification

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import JobRefused
from parsl_flux_bulk.executor.reserved_variables import BY_FLUX

pytestmark = pytest.mark.flux

BOUND = 60.0


@pytest.fixture(scope="module")
def gpu_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Flux instance that believes in four cores and two GPUs."""
    path = tmp_path_factory.mktemp("resources") / "R"
    with path.open("w") as file:
        subprocess.run(["flux", "R", "encode", "-r0", "-c0-3", "-g0-1"], stdout=file, check=True, timeout=30)
    with helpers.flux_instance(f"--conf=resource.path={path}", "--conf=resource.noverify=true") as uri:
        yield uri


@pytest.fixture(scope="module", params=[None, 1], ids=["workers", "jobs"])
def executor(
    request: pytest.FixtureRequest,
    gpu_uri: str,
    new_executor: Callable[..., AbstractContextManager[FluxBulkExecutor]],
) -> Iterator[FluxBulkExecutor]:
    with new_executor(gpu_uri, tasks_per_job=request.param) as executor:
        yield executor


def test_tasks_at_the_same_time_have_different_gpus(executor, tmp_path):
    futures = [
        executor.submit(apps.gpus_when_together, {"gpus_per_task": 1}, str(tmp_path), 1) for _ in range(2)
    ]
    assert sorted(future.result(BOUND) for future in futures) == ["0", "1"]


def test_a_task_with_two_gpus_has_both(executor):
    seen = executor.submit(apps.environment, {"gpus_per_task": 2}, "CUDA_VISIBLE_DEVICES").result(BOUND)
    assert seen == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_task_without_a_gpu_sees_none(executor):
    seen = executor.submit(apps.environment, {}, "CUDA_VISIBLE_DEVICES").result(BOUND)
    assert seen["CUDA_VISIBLE_DEVICES"] in ("", "-1", None)


@pytest.mark.parametrize(
    ("options", "lines"),
    [({}, ["0", "1"]), ({"shell_options": {"gpu-affinity": "on"}}, ["0,1", "0,1"])],
    ids=["default", "all"],
)
def test_ranks_of_a_job_share_its_gpus_out_unless_told_otherwise(executor, tmp_path, options, lines):
    spec = {"num_tasks": 2, "gpus_per_task": 1, **options}
    app = parsl.bash_app(command).wrapped_remote_function
    out = tmp_path / "out"
    assert executor.submit(app, spec, "echo $CUDA_VISIBLE_DEVICES", stdout=str(out)).result(BOUND) == 0
    assert sorted(out.read_text().split()) == lines


def test_more_gpus_than_there_are(executor):
    error = executor.submit(apps.nothing, {"gpus_per_task": 3}).exception(BOUND)
    assert type(error) is JobRefused and "unsatisfiable" in str(error)


def test_four_tasks_share_a_gpu(gpu_uri, new_executor, tmp_path):
    with new_executor(gpu_uri, cores_per_worker=0.5) as executor:
        futures = [
            executor.submit(apps.gpus_when_together, {"gpus_per_task": 0.25}, str(tmp_path), 7)
            for _ in range(8)
        ]
        assert sorted(future.result(BOUND) for future in futures) == ["0"] * 4 + ["1"] * 4


def test_a_shared_gpu_has_no_more_tasks_than_the_cores_allow(gpu_uri, new_executor, tmp_path):
    with new_executor(gpu_uri) as executor:
        futures = [
            executor.submit(apps.gpus_when_together, {"gpus_per_task": 0.25}, str(tmp_path), 3)
            for _ in range(4)
        ]
        assert sorted(future.result(BOUND) for future in futures) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("options", "spec", "said"),
    [
        ({}, {"gpus_per_task": 0.25, "num_tasks": 1}, "an integer beside 'num_tasks'"),
        ({}, {"gpus_per_task": 1.5}, "a fraction below 1"),
        ({"tasks_per_job": 1}, {"gpus_per_task": 0.25}, "leave tasks_per_job out"),
    ],
)
def test_where_gpus_cannot_be_shared_the_error_names_the_way(gpu_uri, new_executor, options, spec, said):
    with new_executor(gpu_uri, **options) as executor:
        with pytest.raises(InvalidResourceSpecification, match=said):
            executor.submit(apps.nothing, spec)


def test_flux_sets_exactly_the_variables_that_an_environment_may_not_have(gpu_uri):
    seen = helpers.flux(gpu_uri, "run", "-g1", "env").splitlines()
    names = {
        name for line in seen if (name := line.split("=")[0]).startswith(("FLUX_", "PMI_", "CUDA_", "OMPI_"))
    }
    names |= BY_FLUX | {"ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TMPDIR", "FLUX_JOB_CC"}
    printed = helpers.flux(gpu_uri, "run", *(f"--env={name}=ours" for name in names), "env")
    kept = {line.removesuffix("=ours") for line in printed.splitlines() if line.endswith("=ours")}
    assert names - kept == BY_FLUX
