"""Check a built sdist and wheel: their files, their metadata, and that the wheel runs on each Python here.

``tox run -e release`` builds both, and calls this with their directory.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

UNPACKAGED = {".gitignore"}
"""Tracked files that a source distribution does not need."""

SCRIPT = """
import parsl
from parsl_flux_bulk import FluxBulkExecutor, FluxPoolExecutor

@parsl.python_app
def double(x):
    return 2 * x

with parsl.load(parsl.Config(executors=[FluxBulkExecutor(instance="local")])):
    assert [future.result() for future in [double(x) for x in range(10)]] == list(range(0, 20, 2))
with FluxPoolExecutor(instance="local") as pool:
    assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]
"""


def check_sdist(sdist: Path, tracked: set[str]) -> list[str]:
    """Return the tracked files that a source distribution lacks."""
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    return sorted(tracked - packed - UNPACKAGED)


def check_wheel(wheel: Path) -> list[str]:
    """Return what is wrong with the files and the description of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    wrong = [f"{name}: not of the package" for name in names if not name.startswith("parsl_flux_bulk")]
    # Nothing but absolute addresses leads anywhere on a package index.
    wrong += [f"relative link: {link}" for link in re.findall(r"\]\((?!https?:)[^)]*\)", text)]
    return wrong


def supported_versions() -> list[str]:
    """Return the versions of Python in the classifiers, such as "3.10"."""
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    return re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])


def find_python(version: str) -> str | None:
    """Return an interpreter of this version: on PATH, or installed by pyenv; None if there is none."""
    for candidate in _candidates(version):
        command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        shown = subprocess.run(command, capture_output=True, text=True)
        if shown.stdout.strip() == version:  # a shim of pyenv may exist without its Python
            return candidate
    return None


def _candidates(version: str) -> Iterator[str]:
    if found := shutil.which(f"python{version}"):
        yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(root.glob(f"versions/{version}.*/bin/python")))


def run_wheel(python: str, wheel: Path, directory: Path) -> None:
    """Install the wheel into a new virtual environment, and run jobs and tasks with it."""
    subprocess.run([python, "-m", "venv", directory / "venv"], check=True)
    programs = directory / "venv" / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", wheel], check=True)
    jobs: list[str | Path] = [programs / "bulksubmit", "--local", "--copies", "3", "--", "true"]
    subprocess.run(jobs, cwd=directory, check=True, timeout=120)
    subprocess.run([programs / "python", "-c", SCRIPT], cwd=directory, check=True, timeout=120)


def main(directory: Path) -> int:
    """Check everything, and return 1 if anything is wrong."""
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    list_files = ["git", "ls-files", "-z"]
    listed = subprocess.run(list_files, cwd=PROJECT, capture_output=True, text=True, check=True)
    tracked = set(filter(None, listed.stdout.split("\0")))
    wrong = [f"{sdist.name} lacks {name}" for name in check_sdist(sdist, tracked)]
    wrong += [f"{wheel.name}: {what}" for what in check_wheel(wheel)]
    for line in wrong:
        print(line, file=sys.stderr)
    ran = 0
    for version in supported_versions():
        if (python := find_python(version)) is None:
            print(f"Python {version}: not installed here, not tested")
            continue
        print(f"Python {version}: {wheel.name} in a new environment", flush=True)
        with tempfile.TemporaryDirectory() as name:
            run_wheel(python, wheel, Path(name))
        ran += 1
    print(f"{sdist.name}, {wheel.name}: ran on {ran} versions of Python, {len(wrong)} things wrong")
    return 1 if wrong or not ran else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
