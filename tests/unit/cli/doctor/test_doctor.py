"""`flux-bulk doctor`: what each check finds on a machine that lacks something, and the exit status."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parsl_flux_bulk.cli.doctor import machine, round_trips, software
from parsl_flux_bulk.cli.doctor.finding import Finding, Status
from parsl_flux_bulk.cli.flux_bulk import main
from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.instances.flux.probe import Probe, probe

CHECKS = [
    "Python", "Parsl", "flux", "flux bindings", "instance", "role", "cores and GPUs", "MPI", "launcher",
    "TMPDIR", "open files", "worker round trip", "block round trip",
]  # fmt: skip


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of PATH, and empty."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("FLUX_URI", raising=False)
    return directory


def command(directory: Path, name: str, prints: str = "") -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def report(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    status = main(["doctor", "--json", *options])
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] == (status == 0)
    return status, {record["check"]: record for record in shown["checks"]}


def test_every_check_is_made_and_whatever_is_wrong_has_a_remedy(
    bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    status, checks = report(capsys, "--quick")
    assert list(checks) == CHECKS
    assert status == 1
    wrong = [check for check in checks.values() if check["status"] in ("warning", "failed")]
    assert {check["check"] for check in wrong} >= {"flux", "TMPDIR", "MPI"}
    assert all(check["remedy"] for check in wrong)


def test_without_flux_the_machine_is_ready_for_jobs_of_its_own(
    bin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    status, checks = report(capsys, "--quick")
    assert (status, checks["flux"]["status"], checks["flux bindings"]["status"]) == (0, "warning", "skipped")
    assert "this machine only" in checks["flux"]["found"]


def test_lines_for_people_say_the_remedy_and_the_sum(
    bin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", "/none")
    assert main(["doctor", "--quick"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["failed", "TMPDIR"]]
    assert lines[number + 1].strip() == "-> export TMPDIR=/tmp"
    assert lines[-1] == "This machine is not ready: TMPDIR failed"


@pytest.mark.parametrize("version", ["0.71.0", "0.71.0-12-gabcdef"])
def test_bindings_of_another_version_are_named(
    bin: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(bin, "flux", f"commands:    		{version}")
    monkeypatch.setattr(software, "import_bindings", lambda: None)
    monkeypatch.setattr(software.importlib.metadata, "version", lambda name: "0.88.0")
    found = software.bindings()
    assert (found.status, found.found) == (Status.WARNING, "0.88.0, but flux-core is 0.71.0")
    assert found.remedy.endswith("pip install flux-python==0.71.0 ply pyyaml")


def test_bindings_that_cannot_be_imported(bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(bin, "flux", "commands: 0.88.0")

    def broken() -> None:
        raise InstanceUnavailable(
            "cannot be imported: No module named 'ply'. Install those of the same version"
        )

    monkeypatch.setattr(software, "import_bindings", broken)
    found = software.bindings()
    assert (found.status, found.found) == (Status.FAILED, "cannot be imported: No module named 'ply'")


def test_a_flux_that_prints_no_version(bin: Path) -> None:
    command(bin, "flux")
    assert software.flux().status is Status.FAILED


@pytest.mark.parametrize("uri", ["elsewhere", "local:///none/local"])
def test_an_instance_that_cannot_be_reached(bin: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command(bin, "flux", "commands: 0.88.0")
    monkeypatch.setenv("FLUX_URI", uri)

    def unreachable(uri: str) -> Probe:
        raise InstanceUnavailable(f"cannot reach {uri}")

    monkeypatch.setattr(machine, "probe", unreachable)
    found, role, cores = machine.instance()
    assert (found.status, role.status, cores.status) == (Status.FAILED, Status.SKIPPED, Status.OK)
    assert uri in found.found and "flux uri" in found.remedy


@pytest.mark.parametrize(
    ("owner", "capacity", "gpus", "expected"),
    [
        (os.getuid(), Capacity(2, 8, 0), 0, ("ok", "ok", "ok")),
        (os.getuid() + 1, Capacity(2, 8, 0), 0, ("ok", "failed", "ok")),
        (os.getuid(), Capacity(0, 0, 0), 0, ("ok", "ok", "failed")),
        (os.getuid(), Capacity(1, 8, 0), 4, ("ok", "ok", "warning")),
        (os.getuid(), Capacity(1, 8, 4), 4, ("ok", "ok", "ok")),
    ],
)
def test_an_instance_that_answers(
    bin: Path,
    owner: int,
    capacity: Capacity,
    gpus: int,
    expected: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command(bin, "flux", "commands: 0.88.0")
    monkeypatch.setenv("FLUX_URI", "local:///run/flux/local")
    monkeypatch.setattr(machine, "probe", lambda uri: Probe("0.88.0", owner, uri, capacity))
    monkeypatch.setattr(machine, "gpus_of_this_machine", lambda: gpus)
    assert tuple(found.status.value for found in machine.instance()) == expected


def test_a_tmpdir_that_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("d" * 81)
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    found = machine.tmpdir()
    assert found.status is Status.WARNING and "at most 80" in found.found
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert machine.tmpdir() == Finding("TMPDIR", Status.OK, "/tmp")


def test_an_allocation_of_nodes_that_flux_does_not_use(bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(bin, "srun")
    for variable in software.ALLOCATIONS:
        monkeypatch.delenv(variable, raising=False)
    assert software.launcher().status is Status.OK
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NNODES", "12")
    assert "srun --mpi=pmi2" in software.launcher().remedy
    (bin / "srun").unlink()
    assert software.launcher().status is Status.FAILED


def test_mpi_without_mpi4py_and_the_other_way_round(bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise software.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(software.importlib.metadata, "version", lambda name: "4.1")
    assert software.mpi().found == "no library, but mpi4py 4.1"
    command(bin, "mpicc")
    assert software.mpi().status is Status.OK
    monkeypatch.setattr(software.importlib.metadata, "version", missing)
    assert "no mpi4py" in software.mpi().found


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    assert software.python().status is Status.FAILED


def test_a_check_that_raises_is_a_line_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: 1 / 0)
    monkeypatch.delenv("FLUX_URI", raising=False)
    status, checks = report(capsys, "--quick")
    assert status == 1 and "ZeroDivisionError" in checks["instance"]["found"]


@pytest.mark.parametrize(
    ("trip", "place"), [(round_trips.worker, "embedded"), (round_trips.block, "a block of")]
)
def test_a_round_trip_on_this_machine(
    trip: Callable[[], Finding], place: str, bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("TMPDIR", "/tmp")
    if shutil.which("flux"):
        pytest.skip("flux is in the system's own directories")
    found = trip()
    assert found.status is Status.OK and place in found.found, found


def test_a_round_trip_that_fails_shows_why_and_one_that_hangs_is_killed(
    bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUX_URI", "not a URI")
    found = round_trips.worker()
    assert found.status is Status.FAILED and "FLUX_URI='not a URI'" in found.found
    found = round_trips.worker(timeout=0.01)
    assert found.status is Status.FAILED and "no answer within 0.01 s" in found.found


@pytest.mark.flux
def test_an_instance_is_probed(flux_uri: str) -> None:
    answer = probe(flux_uri)
    assert answer.owner == os.getuid() and answer.capacity.cores > 0
    with pytest.raises(InstanceUnavailable, match="cannot reach"):
        probe("local:///none/local")
