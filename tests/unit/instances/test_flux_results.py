"""What the eventlog of a Flux job says of its end."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_flux_bulk.instances.flux.results import read_result
from parsl_flux_bulk.pipeline.exit_status_to_error import describe


def exception(type: str, note: str) -> dict[str, Any]:
    return {"name": "exception", "context": {"type": type, "severity": 0, "note": note}}


@pytest.mark.parametrize(
    ("type", "note", "words"),
    [
        ("cancel", "", "canceled"),
        ("cancel", "a rack is moved", "canceled: a rack is moved"),
        ("node-failure", "", "node-failure"),
        ("timeout", "resource allocation expired", "its duration ran out: resource allocation expired"),
    ],
)
def test_an_exception_of_the_job(type: str, note: str, words: str) -> None:
    # The message is that of flux_job_wait(3).
    result = read_result([exception(type, note)], f"Fatal exception type={type} {note}")
    assert describe(result) == words
