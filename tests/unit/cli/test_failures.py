"""What is one cause of failures, and what is retried."""

from __future__ import annotations

import pytest

from parsl_flux_bulk.cli.bulksubmit.failures import SHOWN_CAUSES, Failures, Retries
from parsl_flux_bulk.instances.base import JobResult, JobStatus

FAILED = JobStatus.FAILED


def test_a_cause_is_the_end_and_the_last_line() -> None:
    failures = Failures()
    for number in range(5):
        failures.add(f"job-{number}", "exit status 2", f"{number}\nthe end\n")
    failures.add("other", "exit status 2", "another end\n")
    assert failures.lines() == [
        "  5 jobs: exit status 2",
        "      job-0, job-1, job-2 and 2 more",
        "      | 0",
        "      | the end",
        "  other: exit status 2",
        "      | another end",
    ]


def test_memory_is_bounded() -> None:
    failures = Failures()
    for number in range(SHOWN_CAUSES + 5):
        failures.add("job", f"exit status {number}", "")
    assert failures.count == SHOWN_CAUSES + 5
    assert len(failures.lines()) == SHOWN_CAUSES + 1
    assert failures.lines()[-1] == "  and 5 more; --json FILE lists all"


@pytest.mark.parametrize(
    ("result", "kinds"),
    [
        (JobResult(JobStatus.COMPLETED, exit_code=0), ""),
        (JobResult(FAILED, exit_code=75), "exit 75"),
        (JobResult(FAILED, signal=9), "exit"),
        (JobResult(FAILED, exception="exec", note="lost contact with job shell on broker rank 1"), "lost"),
        (JobResult(FAILED, exception="node-failure", note="shell rank 0"), "lost"),
        (JobResult(FAILED, exception="block-lost"), "lost"),
        (JobResult(FAILED, exception="instance-lost"), ""),
        (JobResult(FAILED, exception="alloc", note="unsatisfiable", started=False), ""),
        (JobResult(JobStatus.TIMEOUT, signal=14, exception="timeout"), "timeout"),
        (JobResult(JobStatus.CANCELED, exception="cancel"), ""),
    ],
)
def test_what_is_retried(result: JobResult, kinds: str) -> None:
    every = ("exit", "lost", "timeout", "75")
    applies = [what for what in every if Retries(1, frozenset({what})).applies(result, 0)]
    assert applies == kinds.split()
    assert not Retries(1, frozenset({"exit", "lost", "timeout"})).applies(result, 1)
