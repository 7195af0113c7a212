"""The submission thread."""

from __future__ import annotations

import threading
import time

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
