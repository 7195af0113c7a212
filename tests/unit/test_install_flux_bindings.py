"""Test which version of the bindings is installed for a version of Flux."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import helpers
import pytest

_spec = importlib.util.spec_from_file_location("tool", helpers.PROJECT / "tools" / "install_flux_bindings.py")
assert _spec is not None and _spec.loader is not None
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def flux_on_path(directory: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    command = directory / "flux"
    command.write_text(f"#!/bin/sh\necho '{says}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")


def test_the_version_is_that_of_flux_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flux_on_path(tmp_path, monkeypatch, "commands:    \t\t0.88.0\nlibflux-core:\t\t0.87.0")
    assert tool.flux_version() == "0.88.0"


def test_a_build_between_two_releases_counts_as_the_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flux_on_path(tmp_path, monkeypatch, "commands:  0.88.0-12-gabcdef0")
    assert tool.flux_version() == "0.88.0"


def test_without_flux_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.flux_version() is None
    assert tool.main() == 0


def test_another_command_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flux_on_path(tmp_path, monkeypatch, "f.lux 4.1")
    with pytest.raises(SystemExit, match="names no version"):
        tool.flux_version()
