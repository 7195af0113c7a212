"""Several executors and a person with ``flux job wait`` in one Flux instance: nobody takes another's word."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

import apps
import helpers
import pytest
from helpers import wait_until

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.bulk.submitter import BulkSubmitter
from parsl_flux_bulk.instances.base import JobRequest, JobStatus
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.jobspec import build
from parsl_flux_bulk.jobspec.resources import Resources

pytestmark = pytest.mark.flux

BOUND = 90.0
TASKS = 30
"""Of each executor; the jobs of the person are as many."""

NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]


def flux(uri: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["flux", *arguments],
        env={**os.environ, "FLUX_URI": uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=BOUND)
    assert process.returncode == 0, err
    return out.split()


def numbers(futures: list[Future[Any]]) -> list[int]:
    return [future.result(BOUND) for future in futures]


def test_nobody_loses_or_steals_a_completion(new_executor: NewExecutor) -> None:
    options = {"tasks_per_job": 1}
    # An instance for this test alone: in the session's there are ends for which nobody waits any more, those
    # of jobs whose scripts other tests have killed, and `flux job wait` would be given them.
    with helpers.flux_instance() as flux_uri, \
         new_executor(flux_uri, label="first", **options) as first, \
         new_executor(flux_uri, label="second", **options) as second:  # fmt: skip
        submitting = flux(
            flux_uri, "submit", "--flags=waitable", f"--cc=1-{TASKS}", "sh", "-c", "exit $(({cc} % 2))"
        )
        ours = [(first.submit(apps.double, {}, n), second.submit(apps.double, {}, -n)) for n in range(TASKS)]
        submitted = printed(submitting)
        # Without an id it consumes any completion that nobody else waits for.
        waits = [flux(flux_uri, "job", "wait") for _ in range(5)]
        answers = []
        while waits:
            process = waits.pop(0)
            out, _ = process.communicate(timeout=BOUND)
            answers.append((out, process.returncode))
            if len(answers) + len(waits) < TASKS:
                waits.append(flux(flux_uri, "job", "wait"))
        assert numbers([a for a, _ in ours]) == [2 * n for n in range(TASKS)]
        assert numbers([b for _, b in ours]) == [-2 * n for n in range(TASKS)]
    assert len(set(submitted)) == TASKS
    assert sorted(out.strip() for out, _ in answers) == sorted(submitted)
    assert sorted(code for _, code in answers) == [0] * (TASKS // 2) + [1] * (TASKS // 2)


def test_a_completion_that_was_stolen_is_found_all_the_same(flux_uri: str) -> None:
    instance = FluxInstance.attach(flux_uri)
    instance.start()
    connection, completion = instance.connect(), instance.completion()
    try:
        requests = [
            JobRequest(build(Resources(), command, environment=os.environ, cwd=os.getcwd()))
            for command in (["true"], ["sh", "-c", "echo why >&2; exit 3"])
        ]
        job_ids = connection.submit(requests)
        for _ in requests:
            flux(flux_uri, "job", "wait").communicate(timeout=BOUND)
        ended: dict[Any, Any] = {}
        for job_id in job_ids:
            completion.watch(job_id)
        wait_until(
            lambda: ended.update({e.job_id: e.result for e in completion.poll(1)}) or len(ended) == 2, BOUND
        )
        well, badly = (ended[job_id] for job_id in job_ids)
        assert well.ok and well.exit_code == 0
        assert (badly.status, badly.exit_code, badly.stderr) == (JobStatus.FAILED, 3, "why")
    finally:
        completion.close()
        connection.close()
        instance.close()


def test_workers_and_jobs_of_several_executors_share_an_instance(
    flux_uri: str, new_executor: NewExecutor
) -> None:
    with new_executor(flux_uri, label="workers", worker_idle_time=0.2) as workers, \
         new_executor(flux_uri, label="jobs", tasks_per_job=1) as jobs, \
         BulkSubmitter(flux_uri) as bulk:  # fmt: skip
        futures = [
            (
                workers.submit(apps.double, {}, n),
                jobs.submit(apps.double, {}, n + 0.5),
                bulk.submit_command(["sh", "-c", f"echo {n}"]),
            )
            for n in range(10)
        ]
        for n, (a, b, c) in enumerate(futures):
            assert a.result(BOUND) == 2 * n
            assert b.result(BOUND) == 2 * n + 1
            assert c.result(BOUND).ok and c.stdout() == f"{n}\n"
