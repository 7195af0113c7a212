"""A pytest plugin that adapts Parsl's tests to FluxBulkExecutor where they name another class.

Loaded with ``-p adapt``. It only replaces names in two test modules:

* ``test_resource_spec.py`` lists the executors that may refuse a resource specification;
* ``test_flux.py`` creates Parsl's FluxExecutor, and checks for the class of its futures.

The tests in ``deselected.txt`` are not run.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.executor.submission_queue import TaskFuture

LIST = Path(__file__).with_name("deselected.txt")


def deselected() -> dict[str, str]:
    """Return the ids of the tests that are not run, with the reasons."""
    lines = (line.strip() for line in LIST.read_text().splitlines())
    pairs = (line.split("|", 1) for line in lines if line and not line.startswith("#"))
    return {test.strip(): reason.strip() for test, reason in pairs}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = deselected()
    left_out = [item for item in items if _id(item) in reasons]
    files = {_id(item).split("::")[0] for item in items}
    stale = [test for test in reasons if test.split("::")[0] in files and test not in set(map(_id, left_out))]
    if stale:
        raise pytest.UsageError(f"{LIST.name} lists tests that do not exist: {', '.join(stale)}")
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        _adapt(module)


def _id(item: pytest.Item) -> str:
    """Return the id below ``parsl/tests``, without parameters."""
    return item.nodeid.rpartition("parsl/tests/")[2].partition("[")[0]


def _adapt(module: ModuleType) -> None:
    if module.__name__.endswith("test_resource_spec"):
        vars(module)["ThreadPoolExecutor"] = FluxBulkExecutor
    elif module.__name__.endswith("test_flux"):
        vars(module)["FluxExecutor"] = _configured_executor
        vars(module)["FluxFutureWrapper"] = TaskFuture


def _configured_executor() -> FluxBulkExecutor:
    """Make the executor of the chosen configuration of this directory."""
    path = os.environ["CONFORMANCE_CONFIGURATION"]
    spec = importlib.util.spec_from_file_location("configuration", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    executor: FluxBulkExecutor = module.fresh_config().executors[0]
    return executor
