"""What a task starts runs on the task's own cores, in an instance of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import parsl
import pytest

from parsl_flux_bulk import FluxBulkExecutor, FluxPoolExecutor
from parsl_flux_bulk.protocol.instance_uri import NO_INSTANCE

BOUND = 120.0

EACH_ITS_CORE = {"num_tasks": 2, "shell_options": {"cpu-affinity": "per-task"}}
"""Two brokers on a node would count the same two cores otherwise."""

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


def executor_inside() -> tuple[list[int], list[list[int]], str]:
    """The CPUs of this task, those of the workers of an executor in it, and where those are."""
    import os

    from parsl_flux_bulk import FluxPoolExecutor

    with FluxPoolExecutor() as pool:
        found = [pool.submit(lambda: sorted(os.sched_getaffinity(0))).result(100) for _ in range(3)]
    return sorted(os.sched_getaffinity(0)), found, os.environ.get("FLUX_URI", "")


def nested_instance() -> dict[str, Any]:
    """What a task with an instance of its own finds."""
    import os
    import subprocess

    def printed(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout

    return {
        "uri": os.environ["FLUX_URI"],
        "cores": printed("flux", "resource", "list", "-n", "-o", "{ncores}", "-s", "free").split(),
        "ran": printed("flux", "run", "-n1", "echo", "inside").split(),
        "job": os.environ.get("FLUX_JOB_ID"),
        "left": [name for name in os.environ if name.startswith("PARSL_FLUX_BULK_")],
    }


@pytest.mark.parametrize("instance", [pytest.param("flux", marks=pytest.mark.flux), "local"])
@pytest.mark.parametrize("alone", [False, True])
def test_an_executor_in_a_task_uses_the_cores_of_the_task(
    instance: str, alone: bool, new_executor: NewExecutor, request: pytest.FixtureRequest
) -> None:
    where = request.getfixturevalue("flux_uri") if instance == "flux" else "local"
    with new_executor(where) as executor:
        specification = {"num_tasks": 1} if alone else {}
        own, workers, _ = executor.submit(executor_inside, specification).result(BOUND)
    assert len(own) == 1
    assert workers == [own] * 3


def blocks_inside() -> int:
    """A result of an embedded block that this task launches."""
    import tempfile

    import parsl
    from parsl.providers import LocalProvider

    from parsl_flux_bulk import FluxBulkExecutor

    provider = LocalProvider(init_blocks=1, max_blocks=1)
    executor = FluxBulkExecutor(instance="local", provider=provider)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        parsl.load(parsl.Config(executors=[executor], run_dir=directory, strategy="none")),
    ):
        return executor.submit(abs, {}, -1).result(60)


@pytest.mark.flux
def test_a_block_in_a_task_runs_in_the_task(new_executor: NewExecutor, flux_uri: str) -> None:
    with new_executor(flux_uri) as executor:
        assert executor.submit(blocks_inside, {}).result(BOUND) == 1


@pytest.mark.flux
def test_a_task_with_an_instance_of_its_own(new_executor: NewExecutor, flux_uri: str) -> None:
    with new_executor(flux_uri) as executor:
        found = executor.submit(nested_instance, {"nested": True, "cores_per_task": 2}).result(BOUND)
    assert found["uri"] != flux_uri
    assert found["cores"] == ["2"]
    assert found["ran"] == ["inside"]
    assert (found["job"], found["left"]) == (None, [])


@pytest.mark.flux
def test_a_bash_app_with_an_instance_of_its_own(new_executor: NewExecutor, flux_uri: str, tmp_path) -> None:
    with (
        new_executor(flux_uri) as executor,
        parsl.load(parsl.Config(executors=[executor], run_dir=str(tmp_path / "runinfo"))),
    ):
        app = parsl.bash_app(_count_cores)
        out = str(tmp_path / "out")
        specification = {"nested": True, "cores_per_task": 2}
        assert app(stdout=out, parsl_resource_specification=specification).result(BOUND) == 0
    lines = (tmp_path / "out").read_text().split()
    assert lines[0] == "2"
    assert lines[1] == "inside"
    assert lines[2] != flux_uri


def _count_cores(stdout=None, parsl_resource_specification=None) -> str:
    return "flux resource list -no {ncores} -s free; flux run -n1 echo inside; echo $FLUX_URI"


def clients_of_flux() -> tuple[str, str, str]:
    """The error of `flux` in this task, the URI of the instance that runs the task, and the error there."""
    import os
    import subprocess

    def run(uri: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["flux", "jobs", "-n"],
            env={**os.environ, "FLUX_URI": uri},
            capture_output=True,
            text=True,
            timeout=100,
        )

    outer = os.environ["PARSL_WORKER_FLUX_URI"]
    return run(os.environ["FLUX_URI"]).stderr, outer, run(outer).stderr


@pytest.mark.flux
@pytest.mark.parametrize(
    "specification", [{}, {"num_tasks": 1}, {"num_tasks": 2}], ids=["worker", "job", "ranks"]
)
def test_flux_in_a_task_says_how_to_get_an_instance(
    new_executor: NewExecutor, flux_uri: str, specification: dict[str, Any]
) -> None:
    with new_executor(flux_uri) as executor:
        refusal, outer, error = executor.submit(clients_of_flux, specification).result(BOUND)
    assert refusal.endswith(f"'{NO_INSTANCE}'\n")
    assert (outer, error) == (flux_uri, "")


@pytest.mark.flux
@pytest.mark.parametrize("specification", [{}, {"num_tasks": 1}, {"num_tasks": 2}], ids=str)
def test_flux_in_a_bash_app(
    new_executor: NewExecutor, flux_uri: str, tmp_path, specification: dict[str, Any]
) -> None:
    with (
        new_executor(flux_uri) as executor,
        parsl.load(parsl.Config(executors=[executor], run_dir=str(tmp_path / "runinfo"))),
    ):
        app = parsl.bash_app(_print_uris)
        assert (
            app(stdout=str(tmp_path / "out"), parsl_resource_specification=specification).result(BOUND) == 0
        )
    assert set((tmp_path / "out").read_text().splitlines()) == {f"{NO_INSTANCE},{flux_uri}"}


def _print_uris(stdout=None, parsl_resource_specification=None) -> str:
    return 'echo "$FLUX_URI,$PARSL_WORKER_FLUX_URI"'


@pytest.mark.flux
def test_flux_start_on_each_rank_is_an_instance_on_the_cores_of_the_job(
    new_executor: NewExecutor, flux_uri: str, tmp_path
) -> None:
    with (
        new_executor(flux_uri) as executor,
        parsl.load(parsl.Config(executors=[executor], run_dir=str(tmp_path / "runinfo"))),
    ):
        app = parsl.bash_app(_start_on_each_rank)
        out = str(tmp_path / "out")
        assert app(stdout=out, parsl_resource_specification=EACH_ITS_CORE).result(BOUND) == 0
    assert (tmp_path / "out").read_text().splitlines() == ["2", "2", "inside", ""]


def _start_on_each_rank(stdout=None, parsl_resource_specification=None) -> str:
    inside = "flux getattr size; flux resource list -no {ncores}; flux run -n1 echo inside"
    return f"flux start sh -c '{inside}; echo $FLUX_EXEC_PATH_PREPEND'"


def start_on_this_rank() -> list[str]:
    """What the first rank's `flux start` prints; the other ranks join it through PMI."""
    import subprocess

    inside = "flux getattr size; flux resource list -no {ncores}"
    command = ["flux", "start", "sh", "-c", inside]
    # The descriptor in PMI_FD.
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=100, close_fds=False
    ).stdout.split()


@pytest.mark.flux
def test_flux_start_on_the_ranks_of_a_python_app(new_executor: NewExecutor, flux_uri: str) -> None:
    with new_executor(flux_uri) as executor:
        assert executor.submit(start_on_this_rank, EACH_ITS_CORE).result(BOUND) == ["2", "2"]


@pytest.mark.flux
def test_with_resources_of_the_pool(flux_uri: str) -> None:
    with FluxPoolExecutor(instance=flux_uri) as pool:
        found = pool.with_resources(nested=True).submit(nested_instance).result(BOUND)
    assert found["cores"] == ["1"]


def test_without_flux_the_error_says_what_is_missing(new_executor: NewExecutor, tmp_path) -> None:
    with new_executor("local", environment={"PATH": "/usr/bin:/bin"}) as executor:
        error = executor.submit(nested_instance, {"nested": True}).exception(BOUND)
    assert "nested=True needs Flux: no flux command on PATH" in str(error)


@pytest.mark.flux
def test_bulksubmit_in_a_job_uses_the_cores_of_the_job(flux_uri: str, tmp_path) -> None:
    command = [sys.executable, "-m", "parsl_flux_bulk", "--verbose", "--", "nproc"]
    done = subprocess.run(
        ["flux", "run", "-n1", "-c1", *command],
        env={**os.environ, "FLUX_URI": flux_uri}, cwd=tmp_path, capture_output=True, text=True, timeout=BOUND,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "flux is on PATH, and this process is part of the job" in done.stderr
