"""Output of a manager goes to files of its node, if it can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from parsl_flux_bulk.protocol import variables
from parsl_flux_bulk.worker import handshake

SCRIPT = """
import os, sys
from parsl_flux_bulk.worker.handshake import open_output
open_output(os.environ)
print("out", flush=True)
print("err", file=sys.stderr)
"""


def run(base: Path, rank: str) -> str:
    root = str(Path(handshake.__file__).parents[2])
    environment = {variables.OUTPUT: str(base), "FLUX_TASK_RANK": rank, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_each_node_writes_to_files_of_its_own(tmp_path: Path) -> None:
    for rank in "01":
        assert run(tmp_path / "workers-3", rank) == ""
    assert (tmp_path / "workers-3.out").read_text() == (tmp_path / "workers-3-1.out").read_text() == "out\n"
    assert (tmp_path / "workers-3-1.err").read_text() == "err\n"


def test_without_a_directory_the_streams_stay(tmp_path: Path) -> None:
    assert run(tmp_path / "absent" / "workers-3", "0") == "out\nerr\n"
