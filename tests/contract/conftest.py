"""Fixtures of the contract tests, which run on every kind of instance."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import helpers
import pytest
from relay_service import BlockInstance, NodeJobInstance
from seam import Seam

from parsl_flux_bulk.instances.base import Instance
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.instances.local.client import LocalInstance

KINDS = [
    "local",
    "federation",
    "relay-local",
    pytest.param("flux-attached", marks=pytest.mark.flux),
    pytest.param("flux-own", marks=pytest.mark.flux),
    pytest.param("relay-flux", marks=pytest.mark.flux),
    pytest.param("packed", marks=pytest.mark.flux),
]
DIFFERENT = KINDS[:4]
"""The kinds that run jobs in different ways."""

ALL_KINDS_IN = {"test_lifecycle", "test_channel", "test_mpi_jobs"}
"""Modules of tests for which it matters who starts an instance, or what carries its messages."""


class OneBlock(Federation):
    """A federation of one embedded instance."""

    def start(self) -> None:
        member = LocalInstance()
        member.start()
        self.add("0", member)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        kinds = KINDS if metafunc.module.__name__ in ALL_KINDS_IN else DIFFERENT
        metafunc.parametrize("kind", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    """The implementation of the interface that a test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def new_instance(kind: str, request: pytest.FixtureRequest) -> Callable[[], Instance]:
    """A function that makes instances of this kind, not started."""
    if kind == "local":
        return LocalInstance
    if kind == "federation":
        return OneBlock
    if kind.startswith("relay"):
        return lambda: BlockInstance(flux=kind == "relay-flux")
    if kind == "flux-own":
        return FluxInstance.own
    if kind == "packed":
        return NodeJobInstance
    uri = request.getfixturevalue("flux_uri")
    return lambda: FluxInstance.attach(uri)


@pytest.fixture(scope="session")
def instance(new_instance: Callable[[], Instance]) -> Iterator[Instance]:
    """A started instance of this kind, for all tests that leave it unchanged."""
    before = set(helpers.own_processes())
    started = new_instance()
    started.start()
    ours = set(helpers.own_processes()) - before
    helpers.LONG_LIVED.update(ours)
    yield started
    started.close()
    helpers.LONG_LIVED.difference_update(ours)


@pytest.fixture
def seam(instance: Instance, kind: str) -> Iterator[Seam]:
    """A new connection and completion of the instance."""
    connection, completion = instance.connect(), instance.completion()
    seam = Seam(instance, connection, completion, kind)
    yield seam
    left = seam.cancel_outstanding()
    completion.close()
    seam.completion.close()  # which a test may have replaced
    connection.close()
    if left:
        pytest.fail(f"left behind by this test, and canceled: {left}", pytrace=False)
