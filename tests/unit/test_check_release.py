"""Test what `tools/check_release.py` finds wrong with a built sdist and wheel."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import helpers
import pytest

_spec = importlib.util.spec_from_file_location("tool", helpers.PROJECT / "tools" / "check_release.py")
assert _spec is not None and _spec.loader is not None
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_an_sdist_without_a_tracked_file_is_wrong(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "name-1.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("name-1/docs/executor.md"), io.BytesIO())
    tracked = {"docs/executor.md", "configs/slurm.py", ".gitignore"}
    assert tool.check_sdist(tmp_path / "name-1.tar.gz", tracked) == ["configs/slurm.py"]


@pytest.mark.parametrize(
    ("name", "description", "wrong"),
    [
        ("parsl_flux_bulk/a.py", "see `docs/a.md` and [Flux](https://flux-framework.org)", []),
        ("parsl_flux_bulk/a.py", "see [a](docs/a.md)", ["relative link: ](docs/a.md)"]),
        ("tests/a.py", "", ["tests/a.py: not of the package"]),
    ],
)
def test_a_wheel_has_the_package_only_and_no_relative_links(
    name: str, description: str, wrong: list[str], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(name, "")
        archive.writestr("parsl_flux_bulk-1.dist-info/METADATA", description)
    assert tool.check_wheel(tmp_path / "a.whl") == wrong


def test_a_python_is_found_by_the_version_that_it_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / f"python{OWN}"
    shim.write_text("#!/bin/sh\nexit 127\n")  # as a shim of pyenv, where no such Python is selected
    shim.chmod(0o755)
    selected = tmp_path / "versions" / f"{OWN}.1" / "bin"
    selected.mkdir(parents=True)
    (selected / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert tool.find_python(OWN) == str(selected / "python")
    assert tool.find_python("3.1") is None


def test_the_supported_versions_are_those_of_the_classifiers() -> None:
    assert tool.supported_versions()[0] == "3.10" and "3.13" in tool.supported_versions()
