"""Below a real `srun` that binds processes to CPUs: as many tasks run at once as there are CPUs, or cores."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

import parsl_flux_bulk

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU cannot be one of two"),
]

BOUND = 120.0

SCRIPT = f"""\
import json, logging, os, sys, tempfile
logging.basicConfig(level=logging.INFO)
import apps
from parsl_flux_bulk import FluxPoolExecutor
instance, expected = sys.argv[1], int(sys.argv[2])
with FluxPoolExecutor(instance=instance or None) as pool, tempfile.TemporaryDirectory() as directory:
    running = [pool.submit(apps.time_together, directory, expected, {BOUND / 2}) for _ in range(4 * expected)]
    times = [future.result() for future in running]
most = max(sum(begin <= moment < end for begin, end in times) for moment, _ in times)
print(json.dumps([len(os.sched_getaffinity(0)), most]))
"""
"""Prints the CPUs that it may use, and how many of its tasks ran at the same time."""

R_OF_TWO_CORES = {"resource": {"noverify": True, "config": [{"hosts": socket.gethostname(), "cores": "0-1"}]}}

ONE_OF_TWO = ("--cpus-per-task=2", "--cpu-bind=map_cpu:0")
FLUX_START = ("flux", "start")


@pytest.mark.parametrize(
    ("options", "start", "instance", "cpus", "at_once"),
    [
        (("--cpus-per-task=1", "--cpu-bind=cores"), (), "local", 1, 1),
        (ONE_OF_TWO, (), "local", 1, 1),
        (("--cpus-per-task=2", "--cpu-bind=cores"), (), "local", 2, 2),
        pytest.param(ONE_OF_TWO, (), "", 1, 1, marks=pytest.mark.flux),
        pytest.param(ONE_OF_TWO, FLUX_START, "", 1, 1, marks=pytest.mark.flux),
        pytest.param(("--cpus-per-task=2", "--cpu-bind=cores"), FLUX_START, "", 2, 2, marks=pytest.mark.flux),
        pytest.param(
            ONE_OF_TWO,
            (*FLUX_START, f"--conf={json.dumps(R_OF_TWO_CORES)}"),
            "",
            1,
            2,
            marks=pytest.mark.flux,
        ),
    ],
    ids=[
        "embedded, allocated one CPU",
        "embedded, bound to one of two",
        "embedded, two CPUs",
        "an instance of the script, bound to one of two",
        "an instance below srun, bound to one of two",
        "an instance below srun, two CPUs",
        "an instance with more cores than CPUs",
    ],
)
def test_as_many_tasks_run_as_there_are_cpus(
    slurm: SlurmCluster,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    start: tuple[str, ...],
    instance: str,
    cpus: int,
    at_once: int,
) -> None:
    tests = Path(__file__).parents[2]
    package = Path(parsl_flux_bulk.__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{package}:{tests}")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    srun = ("srun", "--quiet", "--nodes=1", "--ntasks=1", *options)
    done = slurm.run(*srun, *start, sys.executable, str(script), instance, str(at_once), bound=BOUND)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [cpus, at_once]
    assert f" {at_once} core" in done.stderr, "the log says so"
