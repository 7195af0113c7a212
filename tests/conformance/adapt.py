"""A plugin for pytest: fits Parsl's tests to another executor where they name a class.

Loaded with ``-p adapt``. No test is changed but in the names that its module looks up:

* ``test_resource_spec.py`` accepts that a resource specification is refused from a list of executors,
  which cannot know ours;
* ``test_flux.py`` makes Parsl's FluxExecutor, and looks for the class of its futures.

What ``deselected.txt`` lists is not run.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.executor.runtime import TaskFuture

LIST = Path(__file__).with_name("deselected.txt")


def deselected() -> dict[str, str]:
    """Return the tests that are not run, by their ids, with the reasons."""
    lines = (line.strip() for line in LIST.read_text().splitlines())
    pairs = (line.split("|", 1) for line in lines if line and not line.startswith("#"))
    return {test.strip(): reason.strip() for test, reason in pairs}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = deselected()
    left_out = [item for item in items if _id(item) in reasons]
    files = {_id(item).split("::")[0] for item in items}
    stale = [test for test in reasons if test.split("::")[0] in files and test not in set(map(_id, left_out))]
    if stale:
        raise pytest.UsageError(f"{LIST.name} lists tests that there are not: {', '.join(stale)}")
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        _adapt(module)


def _id(item: pytest.Item) -> str:
    """The id below ``parsl/tests``, without parameters."""
    return item.nodeid.rpartition("parsl/tests/")[2].partition("[")[0]


def _adapt(module: ModuleType) -> None:
    if module.__name__.endswith("test_resource_spec"):
        module.ThreadPoolExecutor = FluxBulkExecutor
    elif module.__name__.endswith("test_flux"):
        module.FluxExecutor = _configured_executor
        module.FluxFutureWrapper = TaskFuture


def _configured_executor() -> FluxBulkExecutor:
    """A new executor, as in a configuration of this directory."""
    path = os.environ["CONFORMANCE_CONFIGURATION"]
    spec = importlib.util.spec_from_file_location("configuration", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    executor: FluxBulkExecutor = module.fresh_config().executors[0]
    return executor
