"""Pages for users of other tools name every option of the tool, and options of this package that exist."""

from __future__ import annotations

import inspect
import re
import subprocess

import helpers
import pytest
from parsl.executors import HighThroughputExecutor, MPIExecutor
from parsl.executors.flux.executor import FluxExecutor

from parsl_flux_bulk import FluxBulkExecutor, FluxPoolExecutor
from parsl_flux_bulk.cli.bulksubmit.option_parser import option_parser
from parsl_flux_bulk.jobspec.validate_resource_keys import VALID_KEYS

PAGES = helpers.PROJECT / "docs" / "coming-from"


def rows(page: str) -> list[tuple[str, str]]:
    """Return the cells of the tables of a page: theirs, ours."""
    lines = (PAGES / page).read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [(theirs.strip(), ours.strip()) for theirs, ours in cells]


def theirs(page: str) -> set[str]:
    """Return what the left columns of the tables of a page name in backquotes."""
    return {word for left, _ in rows(page) for word in re.findall(r"`([^`]+)`", left)}


@pytest.mark.parametrize(
    ("page", "executor"),
    [
        ("high-throughput-executor.md", HighThroughputExecutor),
        ("mpi-executor.md", MPIExecutor),
        ("parsl-flux-executor.md", FluxExecutor),
    ],
)
def test_every_parameter_of_an_executor_of_parsl_is_named(page: str, executor: type) -> None:
    parameters = set(inspect.signature(executor).parameters)
    assert len(parameters) >= 6 and not parameters - theirs(page)


def test_every_parameter_of_executorlib_is_named() -> None:
    executorlib = pytest.importorskip("executorlib")
    for name in ("FluxJobExecutor", "FluxClusterExecutor", "SingleNodeExecutor"):
        parameters = set(inspect.signature(getattr(executorlib, name)).parameters)
        assert len(parameters) > 10 and not parameters - theirs("executorlib.md")


@pytest.mark.flux
def test_every_option_of_flux_bulksubmit_is_named() -> None:
    command = ["flux", "bulksubmit", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    options = set(re.findall(r"^ +(?:-\w, +)?(--[\w-]+)", shown, re.MULTILINE)) - {"--help"}
    assert len(options) > 40 and not options - theirs("flux-bulksubmit.md")


@pytest.mark.parametrize("page", ["flux-bulksubmit.md", "gnu-parallel.md", "hyperqueue.md"])
def test_the_options_that_a_page_recommends_exist(page: str) -> None:
    known = {name for action in option_parser()._actions for name in action.option_strings}
    named = {word for _, ours in rows(page) for word in re.findall(r"`(--?[a-z][\w-]*)", ours)}
    assert len(named) >= 1 and not named - known


@pytest.mark.parametrize("page", ["high-throughput-executor.md", "mpi-executor.md", "parsl-flux-executor.md"])
def test_the_parameters_that_stay_exist(page: str) -> None:
    parameters = set(inspect.signature(FluxBulkExecutor).parameters)
    methods = {name for name in dir(FluxBulkExecutor) if not name.startswith("_")}
    first = {found[1] for _, ours in rows(page) if (found := re.match(r"`(\w+)`", ours))}
    errors = {"WorkerLost"}
    assert first and not first - parameters - methods - set(VALID_KEYS) - errors - {"PATH"}


def test_the_parameters_that_replace_those_of_executorlib_exist() -> None:
    known = {*inspect.signature(FluxPoolExecutor).parameters, *inspect.signature(FluxBulkExecutor).parameters}
    first = {found[1] for _, ours in rows("executorlib.md") if (found := re.match(r"`(\w+)`", ours))}
    assert first and not first - known - set(VALID_KEYS)
