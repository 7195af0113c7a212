"""Test the structure of the package: direction of imports, docstrings of folders, length of modules."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

import helpers
import pytest
from import_graph import Package, circles, inside

import parsl_flux_bulk

PACKAGE = Package(Path(parsl_flux_bulk.__file__).parent)
USES = PACKAGE.uses()
FOLDERS = sorted({name.rpartition(".")[0] for name in USES} - {""})

ORDER = [
    "__main__",
    "cli joblib",
    "pool",
    "executor bulk",
    "scheduler",
    "pipeline",
    "blocks",
    "providers",
    "instances",
    "jobspec",
    "worker",
    "protocol",
    "trace",
    "errors version",
]
"""Entries at the root; each may use those on the lines below its own, and ``__init__`` all of them."""

LEVEL = {name: level for level, line in enumerate(ORDER) for name in line.split()}

MOST_LINES = 450


def test_at_the_root_stands_what_users_import_and_folders() -> None:
    assert {name.split(".")[0] for name in USES} == {"__init__", *LEVEL}


def test_packages_use_only_what_is_below_them() -> None:
    upwards = {
        f"{name} uses {other}"
        for name, used in USES.items()
        for other in used
        if name != "__init__"  # exports what users import from the root
        for mine, its in [(name.split(".")[0], other.split(".")[0])]
        if mine != its and LEVEL.get(its, -1) <= LEVEL[mine]
    }
    assert upwards == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circle_in_a_folder(folder: str) -> None:
    assert circles(inside(folder, USES)) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_belongs_in_it_and_what_it_may_import(folder: str) -> None:
    docstring = ast.get_docstring(PACKAGE.trees[f"{folder}.__init__"])
    assert docstring is not None
    assert re.search(r"\b[Mm]ay import\b", docstring), docstring


def test_modules_stay_short() -> None:
    assert {name for name in USES if PACKAGE.lines_of(name) > MOST_LINES} == set()


def test_flux_is_imported_in_one_folder_only() -> None:
    users = {name for name in USES if PACKAGE.outside(name) & {"flux", "_flux"}}
    assert users
    assert all(name.startswith("instances.flux.") for name in users)


def test_libraries_that_are_imported_are_declared() -> None:
    setup = configparser.ConfigParser()
    setup.read(helpers.PROJECT / "setup.cfg")
    declared = re.findall(r"^([\w-]+)>=", setup["options"]["install_requires"], re.MULTILINE)
    imported = set().union(*map(PACKAGE.outside, USES)) - set(sys.stdlib_module_names) - {"flux", "_flux"}
    imported.remove("IPython")  # which every kernel of a notebook has, and nothing else needs
    optional = {
        "argcomplete": "completion",
        "bokeh": "report",
        "joblib": "joblib",
        "numpy": "report",
        "textual": "top",
    }
    assert imported == {"zmq" if name == "pyzmq" else name for name in declared} | optional.keys()
    for name, extra in optional.items():
        assert re.search(rf"^{name}>=", setup["options.extras_require"][extra], re.MULTILINE)


def test_no_test_looks_into_closures() -> None:
    names = {"__closure__", "__globals__", "cell_contents"}
    found = [
        f"{path.name} uses {name}"
        for path in sorted((helpers.PROJECT / "tests").rglob("*.py"))
        if path != Path(__file__)
        for name in names
        if name in path.read_text(encoding="utf-8")
    ]
    assert found == []


# -- that the checks see what they are for ------------------------------------------------------------


def package_of(directory: Path, **sources: str) -> Package:
    root = directory / "package"
    for name, source in sources.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return Package(root)


@pytest.mark.parametrize(
    "source",
    [
        "import package.folder.b",
        "from package.folder import b",
        "from package.folder.b import name",
        "if TYPE_CHECKING:\n    from package.folder.b import name",
        "def function():\n    from package.folder import b",
        "program = f'import sys; from package.folder.b import main; main({1})'",
        "NAMES = {'name': 'package.folder.b'}",
        "run([sys.executable, os.path.join(os.path.dirname(__file__), 'b.py')])",
        "HERE = Path(__file__).parent\ndef function():\n    return str(HERE / 'b.py')",
    ],
)
def test_a_use_is_seen_and_so_is_the_circle(source: str, tmp_path: Path) -> None:
    package = package_of(tmp_path, folder__a=source, folder__b="from package.folder.a import name")
    assert package.uses() == {"folder.a": {"folder.b"}, "folder.b": {"folder.a"}}
    assert circles(inside("folder", package.uses())) == [{"folder.a", "folder.b"}]


def test_two_folders_that_use_each_other_are_a_circle(tmp_path: Path) -> None:
    package = package_of(
        tmp_path,
        one__a="from package.two.a import name",
        two__a="",
        two__b="import package.one.b",
        one__b="'package.one.a is not meant here'",
    )
    assert circles(package.uses()) == []
    assert circles(inside("", package.uses())) == [{"one", "two"}]
