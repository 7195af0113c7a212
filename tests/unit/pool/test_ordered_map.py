"""Sizes of the batches of a map, by what the items before took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from parsl_flux_bulk.pool.ordered_map import BATCH_TIME, LARGEST_BATCH, OrderedMap
from parsl_flux_bulk.protocol import serialize


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitting takes no time."""
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)


def sizes(items: int, item_time: float) -> list[int]:
    """Return the sizes of the batches of so many items, each of so many seconds, on two workers."""
    waiting: deque[tuple[Future[Any], list[int]]] = deque()
    found = []

    def submit(function: Callable[..., Any], batch: list[int]) -> Future[Any]:
        found.append(len(batch))
        waiting.append((Future(), batch))
        return waiting[-1][0]

    results = OrderedMap(submit, lambda _: None, lambda: 2, abs, [range(items)], None, None).results(None)
    while waiting:
        future, batch = waiting.popleft()
        future.set_result((item_time * len(batch), serialize.returned(batch), b""))
    assert list(results) == list(range(items))
    return found


def test_short_items_share_batches() -> None:
    assert max(sizes(200_000, 1e-6)) == LARGEST_BATCH
    # 64 of one item each are in flight before the first has ended, and the last ones are small again.
    assert len(sizes(200_000, 1e-6)) < 300


def test_batches_take_as_long_as_they_are_to() -> None:
    assert max(sizes(20_000, 0.0005)) == pytest.approx(BATCH_TIME / 0.0005, abs=1)


def test_long_items_have_batches_of_their_own() -> None:
    assert set(sizes(1000, 1.5 * BATCH_TIME)) == {1}
