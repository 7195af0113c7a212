"""Jobspecs that are sent without what they have in common with the one before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parsl_flux_bulk.jobspec.common_parts import CommonParts, JobspecReader, pack_jobspec
from parsl_flux_bulk.jobspec.jobspec import Jobspec

SHARED = {f"NAME{number}": f"value {number}" for number in range(100)}


def jobspec(command: str, environment: dict[str, str] | None = None, **system: Any) -> Jobspec:
    inside = {"duration": 0, **system, **({} if environment is None else {"environment": environment})}
    return Jobspec(
        {
            "version": 1,
            "resources": [{"type": "slot", "count": 1, "label": "task", "with": []}],
            "tasks": [{"command": [command], "slot": "task", "count": {"per_slot": 1}}],
            "attributes": {"system": inside},
        }
    )


JOBS = [
    jobspec("first", SHARED),
    jobspec("equal environment", dict(SHARED)),
    jobspec("one more", {**SHARED, "FLUX_JOB_CC": "1"}),
    jobspec("another value", {**SHARED, "NAME7": "other"}),
    jobspec("the first again", SHARED),
    jobspec("one less", {name: value for name, value in SHARED.items() if name != "NAME3"}),
    jobspec("many others", {**SHARED, **{f"NAME{number}": "x" for number in range(50)}}),
    jobspec("none", {}),
    jobspec("without the key"),
    jobspec("with it again", SHARED),
    jobspec("another setting", SHARED, shell={"options": {"x": 1}}),
    jobspec("not the same", SHARED, shell={"options": {"x": True}}),
]


@pytest.mark.parametrize("jobs", [JOBS, JOBS[::-1], JOBS[::2] + JOBS[1::2]])
def test_the_receiver_gets_what_was_sent(jobs: list[Jobspec]) -> None:
    sender, receiver = CommonParts(), JobspecReader()
    for job in jobs:
        parts = sender.split(job)
        sender.sent(parts)
        read = receiver.read(json.loads(json.dumps(pack_jobspec(parts, job))))
        # As text: 1 == True.
        assert json.dumps(read.data, sort_keys=True) == json.dumps(job.data, sort_keys=True)


def test_copies_are_short() -> None:
    sender = CommonParts()
    sizes = []
    for number in range(3):
        job = jobspec("sleep", {**SHARED, "FLUX_JOB_CC": str(number)})
        parts = sender.split(job)
        sender.sent(parts)
        sizes.append(len(json.dumps(pack_jobspec(parts, job))))
    assert sizes[0] > 2000
    assert max(sizes[1:]) < 100


def test_what_was_not_sent_is_not_left_out_later() -> None:
    sender = CommonParts()
    sender.split(JOBS[0])  # refused, for example
    parts = sender.split(JOBS[0])
    assert parts.environment == SHARED
    assert not parts.same
