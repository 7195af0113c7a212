"""The Python examples of README.md, CONTRIBUTING.md and docs/executor.md run as pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import helpers
import pytest

from parsl_flux_bulk.worker.pinning import physical_cores


def examples(page: str) -> str:
    text = (helpers.PROJECT / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def run_examples(page: str, directory: Path) -> list[str]:
    done = helpers.run_script(examples(page), directory, bound=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(len(physical_cores()) < 2, reason="the example needs two cores")
def test_the_example_of_the_readme(tmp_path: Path) -> None:
    assert sorted(run_examples("README.md", tmp_path)) == ["332833500", "rank 0 of 2", "rank 1 of 2"]


def test_the_examples_of_the_executor_page(tmp_path: Path) -> None:
    assert run_examples("docs/executor.md", tmp_path) == ["49", "CancelledError"]


def test_the_example_of_a_scheduler_test(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(examples("CONTRIBUTING.md"), encoding="utf-8")
    path = os.pathsep.join([str(helpers.PROJECT / "tests" / "unit" / "scheduler"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
