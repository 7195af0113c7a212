"""Flux's purge of inactive jobs leaves empty directories in the KVS; an owned instance removes them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from seam import Seam, jobspec, shell

from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.instances.flux import job_directories
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.jobspec import Jobspec

pytestmark = pytest.mark.flux


@pytest.fixture
def seam(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seam]:
    """An owned instance."""
    monkeypatch.setattr(job_directories, "MARGIN", 0)
    instance = FluxInstance.own()
    instance.start()
    connection, completion = instance.connect(), instance.completion()
    yield Seam(instance, connection, completion, "flux-own")
    completion.close()
    connection.close()
    instance.close()


def flux(seam: Seam, *arguments: str) -> int:
    uri = str(getattr(seam.instance, "uri", None))
    command = ["flux", "proxy", uri, "flux", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60).returncode


def purge(seam: Seam) -> None:
    """Run jobs until one has a directory of its own, and purge all that have ended."""
    (first, _) = seam.run_one(jobspec(["true"]))
    while directory(seam.run_one(jobspec(["true"]))[0]) == directory(first):
        pass
    assert flux(seam, "job", "purge", "--force", "--num-limit=0") == 0
    for event in seam.completion.poll(0.2):
        seam.take(event)


def directory(job_id: JobId) -> str:
    return job_directories.directory_of(job_id)


def exists(seam: Seam, key: str) -> bool:
    return flux(seam, "kvs", "ls", "-d", key) == 0


def test_the_directories_of_purged_jobs_are_removed(seam: Seam) -> None:
    job_id, _ = seam.run_one(jobspec(["true"]))
    assert exists(seam, directory(job_id))
    for _ in range(10):
        purge(seam)
        if not exists(seam, directory(job_id)):
            break
    else:
        pytest.fail("the directory of a purged job is still there")
    assert seam.run_one(jobspec(["true"]))[1].ok


def test_the_directory_of_a_job_that_runs_stays(seam: Seam, tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    running, ended = _in_one_directory(seam, shell(f"read line <{fifo}"), jobspec(["true"]))
    seam.wait([ended])
    for _ in range(3):
        purge(seam)
    assert exists(seam, directory(running))
    fifo.write_text("go\n")
    assert seam.wait([running])[0].ok


def _in_one_directory(seam: Seam, *jobspecs: Jobspec) -> list[JobId]:
    """Submit jobs, again if a new directory begins between them, which is every quarter of a second."""
    while True:
        jobs = seam.submit(*jobspecs)
        if len(set(map(directory, jobs))) == 1:
            return jobs
        seam.connection.cancel(jobs, "submitted again")
        seam.wait(jobs)
