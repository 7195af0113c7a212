"""Checks of what is installed: Python, Parsl, Flux and its bindings, MPI, launchers."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys

from parsl_flux_bulk.cli.doctor.finding import Finding, failed, ok, skipped, warning
from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.flux.handle import core_version, import_bindings

PYTHONS = (3, 10), (3, 13)
"""The oldest and the latest version of Python that the tests run on."""

BATCH_SYSTEMS = {"sbatch": "Slurm", "qsub": "PBS", "bsub": "LSF"}
LAUNCHERS = ("srun", "mpiexec", "jsrun", "aprun")
ALLOCATIONS = {"SLURM_JOB_ID": "Slurm", "PBS_JOBID": "PBS", "LSB_JOBID": "LSF"}
"""Variables that a batch system sets in an allocation."""


def python() -> Finding:
    """Check the version of this interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    found = f"{version} ({sys.executable})"
    oldest, latest = PYTHONS
    if sys.version_info[:2] < oldest:
        return failed("Python", found, f"use Python {_dotted(oldest)} or later")
    if sys.version_info[:2] > latest:
        return warning("Python", found, f"the tests run on Python {_dotted(oldest)} to {_dotted(latest)}")
    return ok("Python", found)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def parsl() -> Finding:
    """Check that Parsl is installed, and can be imported."""
    try:
        import parsl
    except Exception as error:
        return failed("Parsl", f"cannot be imported: {error}", f"{sys.executable} -m pip install parsl")
    return ok("Parsl", str(parsl.__version__))


def flux() -> Finding:
    """Check that there is a ``flux`` command that runs."""
    path = shutil.which("flux")
    if path is None:
        return warning(
            "flux",
            "not on PATH: jobs run on this machine only",
            "load the site's flux module, or install flux-core (conda-forge, Spack); for this machine alone, "
            "Flux is not needed",
        )
    version = core_version()
    if version is None:
        return failed("flux", f"{path}: `flux version` printed no version", "run `flux version` and see why")
    return ok("flux", f"{version} ({path})")


def bindings() -> Finding:
    """Check that Flux's Python bindings can be imported, and have the version of flux-core."""
    check = "flux bindings"
    if shutil.which("flux") is None:
        return skipped(check, "no flux on PATH")
    core = core_version() or "VERSION"
    install = f"{sys.executable} -m pip install flux-python=={core} ply pyyaml"
    try:
        import_bindings()
    except InstanceUnavailable as error:
        return failed(check, str(error).partition(". Install")[0], install)
    try:
        version = importlib.metadata.version("flux-python")
    except importlib.metadata.PackageNotFoundError:
        return ok(check, "those of flux-core itself")  # not from PyPI: built with it
    # Sites add a fourth number.
    if version.split(".")[:3] != core.split(".")[:3]:
        return warning(check, f"{version}, but flux-core is {core}", install)
    return ok(check, version)


def mpi() -> Finding:
    """Check for an MPI library, and for mpi4py."""
    check = "MPI"
    command = next(filter(None, map(shutil.which, ("mpicc", "mpiexec", "mpirun"))), None)
    try:
        mpi4py = importlib.metadata.version("mpi4py")
    except importlib.metadata.PackageNotFoundError:
        mpi4py = ""
    if command and mpi4py:
        return ok(check, f"{command}; mpi4py {mpi4py}")
    if command:
        return warning(check, f"{command}, but no mpi4py", "for MPI apps in Python: pip install mpi4py")
    remedy = "only MPI apps need it: load the site's module, or pip install mpi4py mpich"
    return warning(check, f"no library, but mpi4py {mpi4py}" if mpi4py else "none", remedy)


def launcher() -> Finding:
    """Check for a batch system and a launcher that can start Flux on several nodes."""
    check = "launcher"
    systems = [name for command, name in BATCH_SYSTEMS.items() if shutil.which(command)]
    launchers = [command for command in LAUNCHERS if shutil.which(command)]
    inside = next((name for variable, name in ALLOCATIONS.items() if variable in os.environ), "")
    found = "; ".join(
        filter(
            None, [", ".join(launchers), ", ".join(systems), inside and f"inside an allocation of {inside}"]
        )
    )
    if inside and not launchers:
        return failed(check, found, f"put the launcher of {inside} on PATH: it starts Flux on every node")
    nodes = os.environ.get("SLURM_NNODES", "1")
    if inside == "Slurm" and re.fullmatch(r"[2-9]|\d\d+", nodes) and "FLUX_URI" not in os.environ:
        return warning(
            check,
            f"{found} of {nodes} nodes, without Flux in it",
            "to use every node: srun --mpi=pmi2 -N$SLURM_NNODES -n$SLURM_NNODES flux start python SCRIPT",
        )
    return ok(check, found or "none, and none is needed on one machine")
