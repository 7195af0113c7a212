"""The code blocks of the documentation run as pasted; see `tests/documentation.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import documentation
import helpers
import pytest

from parsl_flux_bulk.worker.pinning import physical_cores

ELSEWHERE = {
    "CONTRIBUTING.md": "integration/test_examples.py::test_the_example_of_a_scheduler_test",
    "docs/bash-apps.md": "integration/executor/test_bash_apps.py::test_the_examples_of_the_documentation",
    "docs/blocks.md": "integration/blocks/test_blocks.py::test_the_examples_of_the_documentation_run",
    "docs/mpi.md": "integration/executor/test_mpi.py::test_the_examples_of_the_documentation",
    "docs/resources.md": "unit/jobspec/test_resources.py::"
    "test_every_example_in_the_documentation_is_a_good_specification",
    "docs/without-parsl.md": "integration/pool/test_pool_executor.py::test_the_documentation",
}
"""Pages whose blocks another test runs."""

START_THEIR_OWN = ("README.md", "docs/start.md", "docs/bulksubmit.md", "docs/monitoring.md")
"""Pages that run as outside of an allocation; the others share a Flux instance, where there is Flux."""

RUN = [
    page
    for page in documentation.PAGES
    if documentation.name_of(page) not in ELSEWHERE and any(b.runs for b in documentation.blocks_of(page))
]


@pytest.mark.skipif(len(physical_cores()) < 2, reason="the examples need two cores")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN, ids=documentation.name_of)
def test_the_blocks_of_a_page(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    own = documentation.name_of(page) in START_THEIR_OWN or helpers.flux_missing()
    documentation.run_page(page, tmp_path, FLUX_URI="" if own else request.getfixturevalue("flux_uri"))


def test_the_example_of_a_scheduler_test(tmp_path: Path) -> None:
    page = helpers.PROJECT / "CONTRIBUTING.md"
    (example,) = (block.text for block in documentation.blocks_of(page) if block.language == "python")
    (tmp_path / "test_example.py").write_text(example, encoding="utf-8")
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
