"""Submitting: ids in order, refusals beside acceptances, what cannot be satisfied."""

from __future__ import annotations

import os

import pytest
from seam import Seam, jobspec, shell

from parsl_flux_bulk.instances.base import JobRequest, JobStatus, Refusal
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.instances.output_parts import read_all

TRUE = jobspec(["true"])


def test_ids_come_in_the_order_of_the_requests(seam: Seam) -> None:
    ids = seam.submit(*(shell(f"exit {code}") for code in range(8)))
    assert len(set(ids)) == 8
    assert [result.exit_code for result in seam.wait(ids)] == list(range(8))


def test_nothing_to_submit_is_fine(seam: Seam) -> None:
    assert seam.connection.submit([]) == []


def test_one_bad_jobspec_is_refused_alone(seam: Seam) -> None:
    bad = jobspec(["true"])
    bad.system["queue"] = "nowhere"
    first, refused, second = seam.connection.submit([JobRequest(spec) for spec in (TRUE, bad, TRUE)])
    assert isinstance(refused, Refusal)
    assert "queue" in refused.reason
    for answer in (first, second):
        assert isinstance(answer, int)
        seam.completion.watch(answer)
        assert seam.wait([answer])[0].ok


@pytest.mark.parametrize(
    "request_",
    [{"tasks": 10_000}, {"cores": 10_000}, {"nodes": 500}, {"gpus": 3}],
    ids=["tasks", "cores", "nodes", "gpus"],
)
def test_what_can_never_be_satisfied_ends_at_once_in_words(seam: Seam, request_: dict[str, int]) -> None:
    """Allowed: a refusal, or a job that fails without having started. Not allowed: waiting."""
    (answer,) = seam.connection.submit([JobRequest(jobspec(["true"], **request_))])  # type: ignore[arg-type]
    if isinstance(answer, Refusal):
        assert "unsatisfiable" in answer.reason
        return
    seam.completion.watch(answer)
    (result,) = seam.wait([answer])
    assert result.status is JobStatus.FAILED
    assert not result.started
    assert result.exit_code is None
    assert result.exception
    assert "unsatisfiable" in result.note


def test_an_absurd_number_of_tasks_ends_at_once_in_words(seam: Seam) -> None:
    absurd = jobspec(["true"])
    absurd.data["tasks"][0]["count"] = {"total": 10**12}
    (answer,) = seam.connection.submit([JobRequest(absurd)])
    if isinstance(answer, Refusal):
        assert "1000000000000 tasks" in answer.reason
        return
    seam.completion.watch(answer)
    (result,) = seam.wait([answer])
    assert (result.status, result.exception) == (JobStatus.FAILED, "exec")
    assert "taskmap" in result.note


def test_job_name_is_what_the_job_itself_sees(seam: Seam) -> None:
    job_id, result = seam.run_one(shell("echo $FLUX_JOB_ID"))
    assert result.ok
    assert read_all(seam.connection, job_id)[0].strip() == seam.instance.job_name(job_id)


def test_capacity_is_what_jobs_can_get(seam: Seam) -> None:
    capacity = seam.connection.capacity()
    assert capacity.nodes == 1
    assert capacity.cores >= 1
    (result,) = seam.run(jobspec(["true"], tasks=capacity.cores))
    assert result.ok


def test_a_held_job_waits_until_it_is_cancelled(seam: Seam) -> None:
    (held,) = seam.connection.submit([JobRequest(TRUE, urgency=0)])
    assert isinstance(held, int)
    seam.completion.watch(held)
    assert all(result.ok for result in seam.run(TRUE, TRUE))  # later ones pass it
    assert held not in seam.results
    seam.connection.cancel([held], "not needed")
    (result,) = seam.wait([held])
    assert result.status is JobStatus.CANCELED
    assert not result.started


def test_many_at_once(seam: Seam) -> None:
    assert all(result.ok for result in seam.run(*[TRUE] * 60))


def test_the_description_is_one_line(seam: Seam) -> None:
    assert seam.instance.description
    assert "\n" not in seam.instance.description


@pytest.mark.flux
def test_submitting_leaks_no_memory(flux_uri: str) -> None:
    """Without flux-security, flux_job_submit(3) never frees its copy of a jobspec."""
    instance = FluxInstance.attach(flux_uri)
    instance.start()
    seam = Seam(instance, instance.connect(), instance.completion(), "flux-attached")
    # The jobs are refused, so that none has to be canceled.
    large = jobspec(["true"], tasks=10_000, environment={"LARGE": "x" * (256 << 10)})
    requests = [JobRequest(large)] * 20
    seam.connection.submit(requests)
    before = _resident()
    for _ in range(4):
        seam.connection.submit(requests)
    assert _resident() - before < 10 << 20  # of the 27 MB that have been signed
    seam.completion.close()
    seam.connection.close()
    instance.close()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
