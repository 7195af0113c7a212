"""Every configuration in ``configs/`` loads, and is what its heading says."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import helpers
import pytest
from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor

CONFIGS = sorted((helpers.PROJECT / "configs").glob("*.py"))


def load(path: Path) -> Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(path)
    (executor,) = config.executors
    assert isinstance(executor, FluxBulkExecutor)
    assert executor.label == path.stem
    assert list(tmp_path.iterdir()) == [], "loading a configuration must start nothing and write nothing"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_when_to_use_it_and_what_to_edit(path: Path) -> None:
    heading = ast.get_docstring(ast.parse(path.read_text()))
    assert heading is not None
    assert "\nWhen to use it\n" in heading and "\nWhat to edit\n" in heading
