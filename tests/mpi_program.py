"""Compile MPI programs for tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# Where Debian has several, `mpicc` may be one that Flux cannot start without more ado (docs/mpi.md).
MPICC = shutil.which("mpicc.mpich") or shutil.which("mpicc")
needs_mpicc = pytest.mark.skipif(
    MPICC is None, reason="no MPI here: no `mpicc` on PATH (Debian: libmpich-dev, mpich)"
)


def build(source: str, directory: Path) -> Path:
    """Compile a C program; return its path."""
    assert MPICC is not None
    (directory / "program.c").write_text(source)
    subprocess.run([MPICC, "-o", "program", "program.c"], cwd=directory, check=True, timeout=60)
    return directory / "program"
