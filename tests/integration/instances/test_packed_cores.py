"""The cores that packed jobs hold, in a real Flux instance: as many as there are jobs, for as long."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import helpers
import pytest

import parsl_flux_bulk
from parsl_flux_bulk import BulkSubmitter, JobFuture
from parsl_flux_bulk.blocks.packed import packed_jobs
from parsl_flux_bulk.blocks.packed.packing import LEAST_CORES, Packing

pytestmark = pytest.mark.flux

BOUND = 60.0
CORES = 4 * LEAST_CORES


@pytest.fixture(scope="module")
def large_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Flux instance that takes this machine for one with CORES cores."""
    configuration = tmp_path_factory.mktemp("large") / "flux.toml"
    configuration.write_text(
        "[resource]\nnoverify = true\n"
        f'[[resource.config]]\nhosts = "{socket.gethostname()}"\ncores = "0-{CORES - 1}"\n'
    )
    with helpers.flux_instance("-c", str(configuration)) as uri:
        yield uri


@pytest.fixture(autouse=True)
def package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(parsl_flux_bulk.__file__).parent.parent))
    monkeypatch.chdir(tmp_path)


def held(uri: str) -> list[int]:
    """Return the cores of each node job."""
    lines = helpers.flux(uri, "jobs", "-no", "{name} {ncores}").splitlines()
    return sorted(int(line.split()[1]) for line in lines if line.startswith("bulksubmit "))


@contextmanager
def bulksubmit(uri: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `bulksubmit --packed`; it has ended well at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "parsl_flux_bulk", "--packed", *arguments],
        env={**os.environ, "FLUX_URI": uri}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
            printed = process.communicate(timeout=BOUND)[0]
            assert process.returncode == 0, printed
        finally:
            process.kill()
    helpers.wait_until(lambda: held(uri) == [], BOUND, "the node jobs end")


@pytest.mark.parametrize(
    ("options", "cores", "tasks"),
    [([], [LEAST_CORES, 3], LEAST_CORES + 3), (["-c3"], [6, 6, 3], 5), (["-n2", "-c2"], [4] * 4, 8)],
    ids=str,
)
def test_no_more_cores_than_jobs_need(
    options: list[str], cores: list[int], tasks: int, large_uri: str, tmp_path: Path
) -> None:
    count = str(LEAST_CORES + 3)
    script = f"echo >> {tmp_path}/ran; until test -e {tmp_path}/go; do sleep 0.05; done"
    with bulksubmit(large_uri, *options, "--copies", count, "--", "sh", "-c", script):
        helpers.wait_lines(tmp_path / "ran", tasks, BOUND, "all jobs that fit run")
        assert held(large_uri) == sorted(cores)
        (tmp_path / "go").touch()


def test_the_last_job_holds_the_cores_of_one_node_job(large_uri: str, tmp_path: Path) -> None:
    script = f"until test -e {tmp_path}/{{}}; do sleep 0.05; done"
    (tmp_path / "go").touch()
    inputs = ["last", *["go"] * (2 * CORES)]
    with bulksubmit(large_uri, "--", "sh", "-c", f"echo $$; {script}", ":::", *inputs):
        helpers.wait_until(lambda: held(large_uri) == [LEAST_CORES], BOUND, "the others give theirs back")
        (tmp_path / "last").touch()


def test_cores_that_others_give_back_are_used(
    large_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_jobs, "REFILL_INTERVAL", 0.1)
    wait = ["sh", "-c", f"until test -e {tmp_path}/go; do sleep 0.05; done"]
    theirs = helpers.flux(
        large_uri, "submit", "--wait-event=start", f"-c{CORES - LEAST_CORES}", "sleep", "600"
    ).strip()
    with BulkSubmitter(large_uri, packed=Packing(1, 0)) as bulk:
        first = [bulk.submit_command(wait) for _ in range(2 * LEAST_CORES)]
        helpers.wait_until(lambda: all(future.job_name for future in first), BOUND)
        assert held(large_uri) == [LEAST_CORES]
        helpers.flux(large_uri, "cancel", theirs)
        later: list[JobFuture] = []

        def one_ran() -> bool:
            later.append(bulk.submit_command(["true"]))
            held(large_uri)  # takes time, so that few are submitted
            return any(future.done() for future in later)

        helpers.wait_until(one_ran, BOUND, "a job passes those that wait")
        (tmp_path / "go").touch()
    helpers.wait_until(lambda: held(large_uri) == [], BOUND)
