"""Test that every configuration in ``configs/`` loads, and launches its blocks as documented."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import helpers
import pytest
from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.blocks import block_program

CONFIGS = sorted((helpers.PROJECT / "configs").glob("*.py"))


def load(path: Path) -> Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(path)
    (executor,) = config.executors
    assert isinstance(executor, FluxBulkExecutor)
    assert executor.label == path.stem
    assert list(tmp_path.iterdir()) == [], "loading a configuration must start nothing and write nothing"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_when_to_use_it_and_what_to_edit(path: Path) -> None:
    heading = ast.get_docstring(ast.parse(path.read_text()))
    assert heading is not None
    assert "\nWhen to use it\n" in heading and "\nWhat to edit\n" in heading


# -- blocks ------------------------------------------------------------------------------------------

FLUX_START = f"flux start {sys.executable} {block_program.__file__} "

LAUNCH_LINES = {
    "slurm": [
        "#SBATCH --nodes=2",
        "#SBATCH --partition=PARTITION",
        "srun --ntasks 2 -l --mpi=pmi2 --cpu-bind=none bash ",
    ],
    "perlmutter": [
        "#SBATCH --constraint=cpu",
        "#SBATCH --qos=regular",
        "srun --ntasks 4 -l --mpi=pmi2 --cpu-bind=none bash ",
    ],
    "frontier": [
        "#SBATCH --partition=batch",
        "#SBATCH --account=ACCOUNT",
        "srun --ntasks 4 -l -c 56 --gpus-per-node=8 bash ",
    ],
    "pbs": [
        "#PBS -l select=2:ncpus=64",
        "mpiexec --bind-to none -ppn 1 -n $WORKERCOUNT --hostfile $HOSTFILE /usr/bin/sh ",
    ],
    "aurora": [
        "#PBS -l select=2:ncpus=208",
        "#PBS -l filesystems=home:flare",
        "mpiexec --cpu-bind none --ppn 1 --pmi=pmi -n $WORKERCOUNT --hostfile $HOSTFILE /usr/bin/sh ",
    ],
    "lsf": [
        "#BSUB -nnodes 2",
        "#BSUB -W 60",
        "jsrun -n 2 -r 1 -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none /bin/bash ",
    ],
    "tuolumne": ["#flux: --nodes=2", "#flux: --queue=pdebug", "#flux: --bank=BANK", "#flux: --exclusive"],
}
"""Beginnings of lines that the batch script of a configuration's block must contain."""

BATCH_SYSTEM = """#!/bin/sh
case ${0##*/}-$1 in
sbatch-*) echo Submitted batch job 7 ;;
qsub-*) echo 7.server ;;
bsub-*) echo "Job <7> is submitted to queue <QUEUE>." ;;
flux-batch) echo f7 ;;
esac
"""


@pytest.fixture
def batch_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put commands of all batch systems on PATH, which accept everything and do nothing."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in (
        "sbatch", "sacct", "squeue", "scancel", "qsub", "qstat", "qdel", "bsub", "bjobs", "bkill", "flux",
    ):  # fmt: skip
        (commands / name).write_text(BATCH_SYSTEM)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")


@pytest.mark.usefixtures("batch_systems")
@pytest.mark.parametrize("name", sorted(LAUNCH_LINES))
def test_a_block_is_launched_as_the_site_wants_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (executor,) = load(helpers.PROJECT / "configs" / f"{name}.py").executors
    assert isinstance(executor, FluxBulkExecutor) and executor.provider is not None
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    executor.run_dir, executor.provider.script_dir = str(tmp_path), str(scripts)
    executor.start()
    try:
        assert len(executor.scale_out_facade(1)) == 1
    finally:
        executor.shutdown()
    (script,) = (path for path in scripts.iterdir() if not path.name.endswith((".stdout", ".stderr")))
    lines = script.read_text().splitlines()
    for beginning in LAUNCH_LINES[name]:
        assert [line for line in lines if line.startswith(beginning)], (
            f"no {beginning!r} in\n{script.read_text()}"
        )
    (program,) = (line for line in lines if block_program.__file__ in line)
    # The launcher writes it into a here-document: no character of it may be special to the shell.
    assert not set("$`\\'\"") & set(program)
    worker_init = executor.provider.worker_init.splitlines()[0]  # type: ignore[attr-defined]
    assert lines.index(worker_init) < lines.index(program), "worker_init comes before Flux, which inherits it"
    if getattr(executor.provider, "starts_flux", False):
        assert program.startswith(f"{sys.executable} {block_program.__file__} ")
    else:
        assert program.startswith(FLUX_START)


def test_every_configuration_with_a_provider_has_its_launch_line_checked() -> None:
    with_provider = {path.stem for path in CONFIGS if "provider=" in path.read_text()}
    assert with_provider == set(LAUNCH_LINES)
