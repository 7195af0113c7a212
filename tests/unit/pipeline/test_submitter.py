"""The submission thread."""

from __future__ import annotations

import threading
import time

import pytest
from fake_instance import FakeInstance, request

from parsl_flux_bulk.pipeline.job import Job
from parsl_flux_bulk.pipeline.submitter import Submitter


def test_a_job_counts_from_before_the_instance_has_it() -> None:
    """A job may have started, and even ended, before the thread reads that it was accepted."""
    instance = FakeInstance()
    connection = instance.connect()
    accepted = []
    submit = connection.submit

    def submit_and_note(requests):
        accepted.append(time.time())
        return submit(requests)

    connection.submit = submit_and_note
    answers = []
    submitter = Submitter(
        lambda: connection,
        opened=lambda capacity: None,
        answered=lambda batch, submitted_at: answers.append(submitted_at) or submitter.close(),
        dropped=lambda job, reason: None,
        lost=lambda error: None,
        max_active_jobs=None,
    )
    submitter.put(Job(), request())
    thread = threading.Thread(target=submitter.run)
    thread.start()
    thread.join(60)

    assert not thread.is_alive()
    assert answers[0] <= accepted[0]


@pytest.mark.parametrize(("in_flight", "fixed", "inside"), [(8, None, 32), (256, None, 256), (256, 5, 5)])
def test_how_many_jobs_are_inside_the_instance(in_flight, fixed, inside) -> None:
    """As many as the instance takes together, if that is more than a small one keeps by default."""
    connection = FakeInstance(cores=2).connect()
    connection.in_flight = in_flight
    answered, ids = 0, threading.Event()

    def count(batch, submitted_at):
        nonlocal answered
        answered += len(batch)
        if answered == inside:
            ids.set()

    submitter = Submitter(
        lambda: connection,
        opened=lambda capacity: None,
        answered=count,
        dropped=lambda job, reason: None,
        lost=lambda error: None,
        max_active_jobs=fixed,
    )
    for _ in range(300):
        submitter.put(Job(), request())
    thread = threading.Thread(target=submitter.run)
    thread.start()
    reached = ids.wait(30)
    left = submitter.close()
    thread.join(30)

    assert reached, answered
    assert not thread.is_alive()
    assert (answered, len(left)) == (inside, 300 - inside)
