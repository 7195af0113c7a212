"""A fixture that loads Parsl with an executor on blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helpers
import parsl
import pytest
from block_executors import BOUND, Running
from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Loads Parsl with an executor for the time of a ``with`` block."""
    # Tests may themselves run inside of Flux; blocks of this machine do not.
    monkeypatch.delenv("FLUX_URI", raising=False)

    @contextmanager
    def run(executor: FluxBulkExecutor, **options: Any) -> Iterator[FluxBulkExecutor]:
        options = {"strategy": "none", "strategy_period": 0.2, **options}
        config = Config(
            executors=[executor], run_dir=str(tmp_path / "runinfo"), initialize_logging=False, **options
        )
        before = set(helpers.own_processes())
        with parsl.load(config):
            yield executor
        # A broker takes its time, on a busy machine more than the leak check grants.
        helpers.wait_gone(set(helpers.own_processes()) - before, BOUND)

    return run
