"""In a real Slurm of three nodes: one Flux instance over all of an allocation, and bulksubmit in it."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import apps
import helpers
import parsl
import pytest
from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider
from slurm_cluster import PARTITION, SlurmCluster

import parsl_flux_bulk
from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.blocks.packed.node_job import IDS_OF_A_NODE

pytestmark = [pytest.mark.slurm, pytest.mark.flux]

BOUND = 150.0
"""Seconds that a run in an allocation may take."""

FLUX_START = ["srun", "--mpi=pmi2", "--cpu-bind=none", "-N3", "flux", "start"]


@pytest.fixture(autouse=True)
def package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(parsl_flux_bulk.__file__).parent.parent))
    monkeypatch.chdir(tmp_path)


def allocate(slurm: SlurmCluster, *command: str) -> str:
    """Run a command in an allocation of three nodes; give what it wrote to stdout."""
    done = slurm.run("salloc", "--quiet", "-N3", "--exclusive", f"-p{PARTITION}", *command, bound=BOUND)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_srun_with_pmi2_makes_one_instance_of_all_nodes(slurm: SlurmCluster) -> None:
    count = "flux getattr size; flux resource list -n -s free -o {ncores}"
    out = allocate(slurm, *FLUX_START, "sh", "-c", count)
    assert out.split() == ["3", str(3 * slurm.cores_per_node)]


def test_without_pmi_every_node_is_an_instance_of_its_own(slurm: SlurmCluster) -> None:
    """Why launch lines must name pmi2: nothing fails, the nodes just do not find each other."""
    out = allocate(slurm, "srun", "--mpi=none", "-N3", "flux", "start", "flux", "getattr", "size")
    assert out.split() == ["1", "1", "1"]


@pytest.mark.timeout(240)
def test_bulksubmit_runs_jobspec_files_on_all_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    steps = f"""
        set -e
        flux submit --dry-run -n1 sleep 0 > jobs/0.json
        for i in $(seq 1 299); do cp jobs/0.json jobs/$i.json; done
        {sys.executable} -m parsl_flux_bulk --json records jobs
        flux jobs -a -n --count=0 -o 'rank={{ranks}}'
    """
    out = allocate(slurm, *FLUX_START, "bash", "-c", steps)
    assert "bulksubmit: Ran 300 jobs in" in out
    records = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    assert [record["status"] for record in records] == ["completed"] * 300
    assert set(out.split()[-300:]) == {f"rank={rank}" for rank in range(3)}


@pytest.mark.timeout(240)
def test_bulksubmit_packs_jobs_on_all_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    # The first jobs wait until as many run as the nodes have cores, so that each node has its share of them.
    meet = f"""
        [ -e met ] && exit
        : > meeting/$FLUX_JOB_ID
        until [ $(ls meeting | wc -l) -ge {3 * slurm.cores_per_node} ]; do sleep 0.1; done
        : > met
    """
    (tmp_path / "meet").write_text(meet)
    steps = f"""
        set -e
        mkdir jobs meeting
        flux submit --dry-run -n1 sh meet > jobs/0.json
        for i in $(seq 1 499); do cp jobs/0.json jobs/$i.json; done
        {sys.executable} -m parsl_flux_bulk --packed --json records jobs
    """
    out = allocate(slurm, *FLUX_START, "bash", "-c", steps)
    assert "bulksubmit: Ran 500 jobs in" in out
    records = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    assert [record["status"] for record in records] == ["completed"] * 500
    # Each node job has a range of ids.
    nodes = Counter(int(record["id"]) // IDS_OF_A_NODE for record in records)
    assert len(nodes) == 3 and min(nodes.values()) >= slurm.cores_per_node, nodes


def test_a_cancelled_allocation_leaves_no_broker_behind(slurm: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "block.sh"
    started = tmp_path / "started"
    program = f"sh -c 'flux getattr broker.pid > {started}; sleep 600'"
    script.write_text(f"#!/bin/bash\n{' '.join(FLUX_START)} {program}\n")
    options = ["--parsable", "-N3", "--exclusive", f"--output={tmp_path}/out"]
    submitted = slurm.run("sbatch", *options, str(script))
    job = submitted.stdout.strip()
    assert job, submitted.stderr
    pid = int(helpers.wait_until(lambda: started.exists() and started.read_text(), BOUND, "Flux has started"))
    assert helpers.is_running(pid)
    assert slurm.run("scancel", job).returncode == 0
    helpers.wait_gone([pid], 60)
    helpers.wait_until(lambda: job not in slurm.jobs(), 60, "Slurm has forgotten the job")


@pytest.mark.timeout(240)
def test_a_parsl_script_runs_on_all_nodes_of_a_block(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    provider = SlurmProvider(
        partition=PARTITION,
        nodes_per_block=3,
        walltime="00:10:00",
        launcher=SrunLauncher(overrides="--mpi=pmi2 --cpu-bind=none"),
        worker_init=f"export FROM_WORKER_INIT='a b' PYTHONPATH={os.environ['PYTHONPATH']}",
    )
    executor = FluxBulkExecutor(label="slurm", provider=provider)
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    with parsl.load(
        Config(executors=[executor], run_dir=str(tmp_path / "runinfo"), strategy="none")
    ) as kernel:
        app = parsl.python_app(apps.meet, data_flow_kernel=kernel)
        small = [app(str(tmp_path / "small"), 3) for _ in range(60)]
        assert len({future.result(timeout=BOUND) for future in small}) == 3
        own_job = {"cores_per_task": slurm.cores_per_node, "duration": 60}
        flood = parsl.python_app(apps.with_place, data_flow_kernel=kernel)
        answers = [flood(number) for number in range(5000)]
        numbers, brokers = zip(*(future.result(timeout=BOUND) for future in answers), strict=True)
        assert numbers == tuple(range(5000))
        assert len(set(brokers)) == 3
        large = [app(str(tmp_path / "large"), 3, parsl_resource_specification=own_job) for _ in range(6)]
        assert len({future.result(timeout=BOUND) for future in large}) == 3
        environment = parsl.python_app(os.getenv, data_flow_kernel=kernel)
        assert environment("FROM_WORKER_INIT").result(timeout=BOUND) == "a b"
    helpers.wait_until(lambda: not slurm.jobs(), 60, "the block's job has ended with the script")
