"""How a job ended, in words and as an exception."""

from __future__ import annotations

import pickle

import pytest

from parsl_flux_bulk.errors import BlockLost, InstanceLost, JobCanceled, JobFailed, JobRefused, JobTimeout
from parsl_flux_bulk.instances.base import JobResult, JobStatus
from parsl_flux_bulk.pipeline.exit_status_to_error import describe, job_error

FAILED, CANCELED, TIMEOUT = JobStatus.FAILED, JobStatus.CANCELED, JobStatus.TIMEOUT
ENDINGS = [
    (JobResult(FAILED, exit_code=3, note="task(s) exited"), "exit status 3", JobFailed),
    (JobResult(FAILED, signal=9, note="task(s) Killed"), "killed by SIGKILL", JobFailed),
    (JobResult(FAILED, signal=99), "killed by signal 99", JobFailed),
    (
        JobResult(FAILED, exit_code=127, exception="exec", note="no such program"),
        "exit status 127: exec: no such program",
        JobFailed,
    ),
    (JobResult(FAILED, exception="exec", note="node failure"), "exec: node failure", JobFailed),
    (JobResult(FAILED, note="odd"), "odd", JobFailed),
    (JobResult(FAILED), "failed; the instance reported no cause", JobFailed),
    (
        JobResult(FAILED, exception="submit", note="bad queue", started=False),
        "refused: bad queue",
        JobRefused,
    ),
    (JobResult(FAILED, exception="alloc", note="too much", started=False), "refused: too much", JobRefused),
    (
        JobResult(FAILED, exception="instance-lost", note="its broker ended"),
        "the instance was lost: its broker ended",
        InstanceLost,
    ),
    (
        JobResult(FAILED, exception="block-lost", note="block 3: its host died"),
        "its block was lost: block 3: its host died",
        BlockLost,
    ),
    (JobResult(CANCELED, exception="cancel", note="enough"), "canceled: enough", JobCanceled),
    (JobResult(TIMEOUT, exception="timeout"), "its duration ran out", JobTimeout),
]


@pytest.mark.parametrize(("result", "words", "kind"), ENDINGS)
def test_an_ending_has_its_words_and_its_error(result: JobResult, words: str, kind: type) -> None:
    assert describe(result) == words
    error = job_error(result, "job ƒ1 (a.json)")
    assert type(error) is kind
    assert str(error) == f"job ƒ1 (a.json): {words}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_completed_job_is_described_as_such() -> None:
    assert describe(JobResult(JobStatus.COMPLETED, exit_code=0)) == "completed"


def test_the_last_lines_of_standard_error_are_in_its_error() -> None:
    error = job_error(JobResult(FAILED, exit_code=1, stderr="first\nlast\n"), "job")
    assert str(error).endswith("its standard error ended with:\n    first\n    last")
