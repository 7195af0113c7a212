"""What the tests of workers share: the executor's end of a channel, over a Unix socket or over Flux."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest
from executor_end import ExecutorEnd, executor_end
from service_process import Service


@pytest.fixture
def end(tmp_path: Path) -> Iterator[ExecutorEnd]:
    with executor_end(tmp_path) as end:
        yield end


@pytest.fixture(scope="package")
def flux_uri() -> Iterator[str]:
    with helpers.flux_instance("-s2") as uri:
        yield uri


@pytest.fixture
def service(flux_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("FLUX_URI", flux_uri)
    with Service(flux_uri, tmp_path) as service:
        yield service
