"""Backpressure: who waits, until when, and who never does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import helpers
import pytest

from parsl_flux_bulk.executor.pending_limit import PendingLimit
from parsl_flux_bulk.pipeline.callbacks import CallbackFuture


class Waiter:
    """A thread that calls something, which may wait."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.passed = threading.Event()
        self._thread = threading.Thread(target=lambda: (call(), self.passed.set()))
        self._thread.start()

    def join(self) -> None:
        self._thread.join(30)
        assert self.passed.is_set()


def test_who_submits_too_much_waits_for_an_eighth_to_end(caplog: pytest.LogCaptureFixture) -> None:
    limit = PendingLimit(16, "name")
    with caplog.at_level("INFO"):
        for _ in range(16):
            limit.enter()
        assert not caplog.records
        waiter = Waiter(limit.enter)
        helpers.wait_until(lambda: caplog.records, 30, "it says so")
        limit.leave()
        assert limit.pending == 15
        assert not waiter.passed.wait(0.1)
        limit.leave()
        waiter.join()
        assert limit.pending == 15
        limit.enter()
        waiter = Waiter(limit.enter)
        while not waiter.passed.wait(0.01):
            limit.leave()
        waiter.join()
    assert [record.getMessage() for record in caplog.records] == [
        "submit waits executor=name pending=16: max_pending_tasks reached; later waits are not logged"
    ]


@pytest.mark.parametrize("kind", [Future, CallbackFuture])
def test_a_callback_never_waits(kind: Callable[[], Future[Any]]) -> None:
    limit = PendingLimit(1, "name")
    limit.enter()
    future = kind()
    passed = []
    future.add_done_callback(lambda _: passed.append(limit.enter()))
    future.set_result(None)
    assert passed == [None]
    assert limit.pending == 2


def test_the_end_of_the_executor_lets_everyone_go_on() -> None:
    limit = PendingLimit(1, "name")
    limit.enter()
    waiters = [Waiter(limit.enter) for _ in range(3)]
    assert not waiters[0].passed.wait(0.1)
    limit.close()
    for waiter in waiters:
        waiter.join()
    limit.enter()
