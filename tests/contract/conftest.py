"""Every contract test runs over every instance: embedded, Flux of our own, attached, and relayed blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import helpers
import pytest
from relay_service import BlockInstance
from seam import Seam

from parsl_flux_bulk.instances.base import Instance
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.instances.local.client import LocalInstance

KINDS = [
    "local",
    "federation",
    "relay-local",
    pytest.param("flux-own", marks=pytest.mark.flux),
    pytest.param("flux-attached", marks=pytest.mark.flux),
    pytest.param("relay-flux", marks=pytest.mark.flux),
]


class OneBlock(Federation):
    """A federation with one embedded instance in it."""

    def start(self) -> None:
        member = LocalInstance()
        member.start()
        self.add("0", member)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which implementation of the seam a test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def new_instance(kind: str, request: pytest.FixtureRequest) -> Callable[[], Instance]:
    """Makes instances of this kind, not started."""
    if kind == "local":
        return LocalInstance
    if kind == "federation":
        return OneBlock
    if kind.startswith("relay"):
        return lambda: BlockInstance(flux=kind == "relay-flux")
    from parsl_flux_bulk.instances.flux.instance import FluxInstance

    if kind == "flux-own":
        return FluxInstance.own
    uri = request.getfixturevalue("flux_uri")
    return lambda: FluxInstance.attach(uri)


@pytest.fixture(scope="session")
def instance(new_instance: Callable[[], Instance]) -> Iterator[Instance]:
    """One started instance of this kind, for all tests that leave it as it was."""
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
    """A fresh connection and completion of it."""
    connection, completion = instance.connect(), instance.completion()
    seam = Seam(instance, connection, completion, kind)
    yield seam
    left = seam.cancel_outstanding()
    completion.close()
    seam.completion.close()  # which a test may have replaced
    connection.close()
    if left:
        pytest.fail(f"left behind by this test, and canceled: {left}", pytrace=False)
