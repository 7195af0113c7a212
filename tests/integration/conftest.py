"""What the integration tests share: a Flux instance, started when the first test wants it."""

from __future__ import annotations

from collections.abc import Iterator

import helpers
import pytest


@pytest.fixture(scope="session")
def flux_uri() -> Iterator[str]:
    """The URI of a Flux instance of one broker, for the whole session."""
    with helpers.flux_instance() as uri:
        yield uri
