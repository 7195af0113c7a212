"""Which instance is used where."""

from __future__ import annotations

import importlib.util
import logging
import shutil

import pytest

from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances import factory
from parsl_flux_bulk.instances.factory import choose_instance


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Say what there is on this machine; returns what would be used on it."""

    def chosen(
        *, uri: str | None = None, command: bool = False, bindings: bool = False, job: str | None = None
    ) -> str:
        for name, value in (("FLUX_URI", uri), ("FLUX_JOB_ID", job)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if command else None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if bindings else None)
        asked: list[str] = []

        def by_name(spec: str) -> str:
            asked.append(spec)
            return spec

        monkeypatch.setattr(factory, "choose_instance", by_name)
        choose_instance(None)
        return asked[0]

    return chosen


def test_the_order_of_choice(machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, factory.__name__)
    assert machine(uri="local:///x", command=True, bindings=True) == "local:///x"
    assert machine(command=True, bindings=True) == "flux"
    assert machine() == "local"
    assert [record.levelname for record in caplog.records] == ["INFO"] * 3


def test_a_process_in_a_job_never_waits_for_cores_that_the_job_holds(
    machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, factory.__name__)
    assert machine(uri="local:///x", command=True, bindings=True, job="ƒabc") == "flux"
    assert machine(uri="local:///x", job="ƒabc") == "local"
    assert machine(command=True, bindings=True, job="7") == "flux"
    assert all("part of the job" in record.getMessage() for record in caplog.records)


def test_flux_without_its_bindings_is_passed_over_aloud(machine, caplog: pytest.LogCaptureFixture) -> None:
    assert machine(command=True) == "local"
    assert "pip install flux-python==VERSION ply pyyaml" in caplog.text
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.parametrize("uri", ["garbage", "local", "flux"])
def test_a_FLUX_URI_that_is_not_a_uri(uri: str, machine) -> None:
    with pytest.raises(
        InstanceUnavailable, match=f"FLUX_URI='{uri}' is not a URI such as .*; unset FLUX_URI"
    ):
        machine(uri=uri, command=True, bindings=True)


def test_an_instance_is_taken_as_it_is() -> None:
    instance = choose_instance("local")
    assert choose_instance(instance) is instance


def test_a_uri_is_attached_to() -> None:
    assert choose_instance("ssh://host/tmp/x").uri == "ssh://host/tmp/x"


def test_a_name_that_names_nothing() -> None:
    with pytest.raises(ValueError, match="instance='laptop' is not an instance: give 'local'"):
        choose_instance("laptop")
