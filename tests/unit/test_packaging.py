"""Test the installed package, the README's command, the metadata, and what an import brings."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import pytest

import parsl_flux_bulk

DISTRIBUTION = "parsl-flux-bulk"

installed = pytest.mark.skipif(
    "TOX_ENV_NAME" not in os.environ, reason="the package is installed under tox only"
)


@installed
def test_what_is_tested_is_what_was_installed() -> None:
    assert Path(parsl_flux_bulk.__file__).is_relative_to(sys.prefix)
    files = {str(file) for file in importlib.metadata.files(DISTRIBUTION) or ()}
    assert {"parsl_flux_bulk/py.typed", "parsl_flux_bulk/cli/bulksubmit/main.py"} <= files
    assert not {file for file in files if file.startswith(("tests", "configs", "demo", "tools"))}


@installed
def test_the_installed_command_has_the_version_of_the_package() -> None:
    command = Path(sys.prefix, "bin", "bulksubmit")
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=90)
    assert shown.stdout == f"bulksubmit {parsl_flux_bulk.__version__}\n"
    assert importlib.metadata.version(DISTRIBUTION) == parsl_flux_bulk.__version__


@installed
def test_the_description_has_no_relative_links() -> None:
    description = importlib.metadata.metadata(DISTRIBUTION).get_payload()
    assert isinstance(description, str) and "docs/bulksubmit.md" in description
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", description)


def test_ci_runs_the_command_of_the_readme() -> None:
    readme = (helpers.PROJECT / "README.md").read_text()
    command = next(line for line in readme.splitlines() if line.endswith("tests/run"))
    # In two steps: the environments first.
    assert f"{command} --notest" in (helpers.PROJECT / ".ci" / "run").read_text().splitlines()


def test_no_message_installs_what_is_not_on_pypi() -> None:
    sources = (helpers.PROJECT / "parsl_flux_bulk").rglob("*.py")
    naming = [path.name for path in sources if re.search(r"parsl[-_]flux[-_]bulk\[", path.read_text("utf-8"))]
    assert not naming


@pytest.mark.parametrize("name", ["demo/run", "tests/run"])
def test_the_commands_of_the_readme_print_what_they_start(name: str, tmp_path: Path) -> None:
    assert f"\n{name}\n" in (helpers.PROJECT / "README.md").read_text()
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 3\n")  # the first command, creating .venv, fails
    python.chmod(0o755)
    script = tmp_path / name
    script.parent.mkdir()
    shutil.copy(helpers.PROJECT / name, script)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([script], env={"PATH": path}, capture_output=True, text=True, timeout=90)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "+ python3 -m venv .venv"


def test_the_changelog_knows_the_version() -> None:
    changelog = (helpers.PROJECT / "CHANGELOG.md").read_text()
    first = re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert first is not None and first[1] in ("Unreleased", parsl_flux_bulk.__version__)


def test_the_pythons_of_the_metadata_are_those_of_the_classifiers() -> None:
    setup = configparser.ConfigParser()
    setup.read(helpers.PROJECT / "setup.cfg")
    lowest = setup["options"]["python_requires"].removeprefix(">=")
    classifiers = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert classifiers[0] == lowest


@pytest.mark.parametrize(
    "module", ["parsl_flux_bulk", "parsl_flux_bulk.bulk", "parsl_flux_bulk.cli.bulksubmit.main"]
)
def test_an_import_brings_neither_parsl_nor_flux(module: str) -> None:
    code = (
        f"import sys, {module}; print(*sorted({{'parsl', 'flux', 'rich', 'typeguard'}} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30, env=environment
    )
    assert shown.stdout == "\n"


def test_public_names_come_when_they_are_used() -> None:
    for name in parsl_flux_bulk.__all__:
        assert getattr(parsl_flux_bulk, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        parsl_flux_bulk.Nothing  # noqa: B018
