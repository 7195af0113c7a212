"""Waiting: time-outs, and waking up from another thread."""

from __future__ import annotations

import threading
import time

from helpers import wait_until
from seam import BOUND, Seam, shell

from parsl_flux_bulk.instances.base import JobEnded


def test_poll_without_waiting(seam: Seam) -> None:
    began = time.monotonic()
    assert seam.completion.poll(0) == []
    assert time.monotonic() - began < BOUND


def test_poll_waits_as_long_as_it_may(seam: Seam) -> None:
    began = time.monotonic()
    assert seam.completion.poll(0.3) == []
    assert 0.25 < time.monotonic() - began < BOUND


def test_a_time_out_counts_for_one_poll_only(seam: Seam) -> None:
    assert seam.completion.poll(0.01) == []
    (job_id,) = seam.submit(shell("sleep 0.3"))
    events = []
    while not events:
        events = seam.completion.poll(BOUND)
    assert events[0].job_id == job_id  # type: ignore[union-attr]


def test_wake_before_poll(seam: Seam) -> None:
    seam.completion.wake()
    assert seam.completion.poll(BOUND) == []


def test_wakes_coalesce(seam: Seam) -> None:
    for _ in range(100_000):  # more than any pipe holds
        seam.completion.wake()
    assert seam.completion.poll(BOUND) == []
    began = time.monotonic()
    assert seam.completion.poll(0.2) == []
    assert time.monotonic() - began > 0.15, "a wake-up was left over"


def test_wake_from_another_thread(seam: Seam) -> None:
    polling = threading.Event()

    def wake() -> None:
        polling.wait(BOUND)
        # Surely inside poll by now: the main thread has gone to sleep.
        wait_until(lambda: _state_of_main_thread() == "S", BOUND)
        seam.completion.wake()

    thread = threading.Thread(target=wake)
    thread.start()
    polling.set()
    began = time.monotonic()
    assert seam.completion.poll(None) == []
    assert time.monotonic() - began < BOUND
    thread.join()


def _state_of_main_thread() -> str:
    with open(f"/proc/self/task/{threading.main_thread().native_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_wake_after_close_is_fine(seam: Seam) -> None:
    seam.completion.close()
    seam.completion.wake()


def test_several_ends_come_each_once(seam: Seam) -> None:
    ids = seam.submit(*[shell("exit 0")] * 20)
    ended = []
    deadline = time.monotonic() + BOUND
    while len(ended) < 20 and time.monotonic() < deadline:
        ended += [event.job_id for event in seam.completion.poll(1) if isinstance(event, JobEnded)]
    assert sorted(ended) == sorted(ids)
    assert seam.completion.poll(0.1) == []


def test_two_completions_hear_of_their_own_jobs_only(seam: Seam) -> None:
    other = seam.instance.completion()
    try:
        (mine,) = seam.submit(shell("exit 0"))
        seam.wait([mine])
        assert other.poll(0.1) == []
    finally:
        other.close()
