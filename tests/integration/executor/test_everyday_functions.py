"""Everyday functions, classes and constants of a script, and the ways to start a script."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipapp
import zipfile
from pathlib import Path

import pytest
from helpers import PROJECT

BOUND = 100.0
SCRIPT = Path(__file__).parent / "everyday_functions.py"
CASES = re.findall(r"^def case_(\w+)", SCRIPT.read_text(), re.MULTILINE)


def run(command: list[str], directory: Path, source: str | None = None) -> str:
    """Run Python with arguments, and a source on its standard input; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, *command],
        input=source or "", cwd=directory, env=environment, capture_output=True, text=True, timeout=BOUND,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    return done.stdout


def run_notebook(source: str, directory: Path) -> str:
    """Run a notebook with a cell for each statement of a module; return what the cells printed."""
    nbclient = pytest.importorskip("nbclient", reason="needs Jupyter: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs Jupyter: pip install nbclient ipykernel")
    import nbformat

    lines = source.splitlines()
    notebook = nbformat.v4.new_notebook()
    for statement in ast.parse(source).body:
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
        notebook.cells.append(nbformat.v4.new_code_cell("\n".join(lines[first - 1 : statement.end_lineno])))
    done = nbclient.execute(notebook, cwd=str(directory), timeout=BOUND, kernel_name="python3")
    streams = [o for cell in done.cells for o in cell.get("outputs", ()) if o["output_type"] == "stream"]
    assert [output["text"] for output in streams if output["name"] != "stdout"] == []
    return "".join(output["text"] for output in streams)


def run_in_ipython(script: Path, arguments: list[str], directory: Path) -> str:
    """Run a script in IPython, as one cell; return what it printed."""
    pytest.importorskip("IPython", reason="needs IPython: pip install ipython")
    # Not by the file's path, with which IPython makes a module of its own.
    source = (
        f"import sys\nsys.argv = {['cell', *arguments]!r}\nget_ipython().run_cell({script.read_text()!r})\n"
    )
    (directory / "cells.ipy").write_text(source)
    return run(["-m", "IPython", "--no-banner", "--colors=NoColor", "cells.ipy"], directory)


@pytest.fixture(scope="module", params=["script", "ipython", "notebook"])
def outcomes(
    request: pytest.FixtureRequest, where: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What each case of the script came to; the cases share an executor."""
    directory, options = tmp_path_factory.mktemp("everyday"), json.dumps({"instance": where})
    if request.param == "script":
        printed = run([str(SCRIPT), options], directory)
    elif request.param == "ipython":
        printed = run_in_ipython(SCRIPT, [options], directory)
    else:
        arguments = f"import sys\nsys.argv = ['notebook', {options!r}]\n"
        printed = run_notebook(arguments + SCRIPT.read_text(), directory)
    found: dict[str, str] = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    return found


def test_no_case_is_left_out(outcomes: dict[str, str]) -> None:
    assert sorted(outcomes) == sorted(CASES) and len(CASES) >= 45


@pytest.mark.parametrize("case", CASES)
def test_everyday(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case] == "right"


# -- ways to start a script ----------------------------------------------------------------------------

SOURCE = """
import statistics as np
{imports}
from parsl_flux_bulk import FluxBulkExecutor

class Point:
    def __init__(self, x): self.x = x

def helper(x):
    return {beside}(x) + 1

def app(point):
    return Point(np.mean([helper(point.x), helper(point.x)]))

executor = FluxBulkExecutor(instance={where!r})
executor.run_dir = "runinfo"
executor.start()
first = executor.submit(app, {{}}, Point(2)).result(60)
def helper(x):
    return {beside}(x) + 2
second = executor.submit(app, {{}}, Point(2)).result(60)
print(type(first) is Point, first.x, second.x, executor.submit({beside}, {{}}, 3).result(60))
executor.shutdown()
"""
PRINTED = "True 21 22 30\n"
BESIDE = "def times_ten(x):\n    return 10 * x\n"


def source(where: str, imports: str = "from beside import times_ten", beside: str = "times_ten") -> str:
    return SOURCE.format(where=where, imports=imports, beside=beside)


def test_a_script_that_is_started_from_another_directory(where: str, tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    (project / "beside.py").write_text(BESIDE)
    (project / "script.py").write_text(source(where))
    assert run(["../project/script.py"], elsewhere) == PRINTED


def test_a_command(where: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    assert run(["-c", source(where)], tmp_path) == PRINTED


def test_standard_input(where: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    assert run(["-"], tmp_path, source(where)) == PRINTED


def test_a_package(where: str, tmp_path: Path) -> None:
    package = tmp_path / "project"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "beside.py").write_text(BESIDE)
    (package / "__main__.py").write_text(source(where, "from .beside import times_ten"))
    assert run(["-m", "project"], tmp_path) == PRINTED
    (package / "__main__.py").write_text(source(where, "from . import beside", "beside.times_ten"))
    assert run(["-m", "project"], tmp_path) == PRINTED


def test_a_zipapp(where: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "beside.py").write_text(BESIDE)
    (project / "__main__.py").write_text(source(where))
    zipapp.create_archive(project, tmp_path / "app.pyz")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(["../app.pyz"], elsewhere) == PRINTED


def test_a_zipped_package(where: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "library.zip", "w") as archive:
        archive.writestr("beside.py", BESIDE)
    imports = "import sys; sys.path.insert(0, 'library.zip'); from beside import times_ten"
    (tmp_path / "script.py").write_text(source(where, imports))
    assert run(["script.py"], tmp_path) == PRINTED


@pytest.mark.skipif(importlib.util.find_spec("IPython") is None, reason="IPython is not installed")
def test_ipython(where: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "cells.ipy").write_text(source(where))
    printed = run(["-m", "IPython", "--no-banner", "--colors=NoColor", "cells.ipy"], tmp_path)
    assert PRINTED in printed
