"""Call a function with every item of an iterable, in batches of some milliseconds, with results in order.

Items are taken from the iterables in the threads that call `map` and take results, and batches are submitted
there and when batches end. So all items run even if nobody takes the results, as in
:meth:`concurrent.futures.Executor.map`; with a `buffersize`, only as many as fit the buffer.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from parsl_flux_bulk.protocol import serialize
from parsl_flux_bulk.worker import batch

BATCH_TIME = 0.02
"""Seconds that a batch is to take."""

LARGEST_BATCH = 4096
"""Items of a batch at most, so that a worker sends results some hundred times a second."""

BATCH_BYTES = 4 << 20
"""Bytes of results of a batch at most, unless one item has more."""

GROWTH = 16
"""How many times larger than the last one a batch may be: the first item may be cheaper than the others."""

FEWEST_IN_FLIGHT = 64
"""Batches that are submitted before one has ended; more if there are many workers."""


class OrderedMap:
    """The state of one call of `map`.

    Parameters
    ----------
    submit : callable
        Runs a function with arguments as a task.
    cancel : callable
        Cancels the tasks of futures that have not begun.
    workers : callable
        Returns the number of workers.
    iterables : sequence of iterable
        Of the arguments of each call of `function`.
    chunksize : int or None
        Items of a batch; None for as many as take `BATCH_TIME`.
    buffersize : int or None
        Items that may be submitted without their results having been taken; None for all.
    """

    def __init__(
        self,
        submit: Callable[..., Future[Any]],
        cancel: Callable[[Collection[Future[Any]]], None],
        workers: Callable[[], int],
        function: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        chunksize: int | None,
        buffersize: int | None,
    ) -> None:
        self._submit = submit
        self._cancel = cancel
        self._workers = workers
        starred = len(iterables) != 1
        self._function = functools.partial(batch.run, function, starred)
        self._function.__name__ = getattr(function, "__name__", repr(function))  # type: ignore[attr-defined]
        self._items: Iterator[Any] = zip(*iterables, strict=False) if starred else iter(iterables[0])
        self._chunksize = chunksize
        self._room = buffersize
        self._pending: deque[Any] = deque()
        self._batches: deque[tuple[Future[Any], int]] = deque()
        self._in_flight = 0
        self._item_time = 0.0
        self._size = chunksize or 1
        # Reentrant: a future that has ended already calls back at once.
        self._lock = threading.RLock()
        self.fill()

    def fill(self) -> None:
        """Take as many items as there is room for, and submit."""
        taken = list(itertools.islice(self._items, self._room))
        if self._room is not None:
            self._room -= len(taken)
        with self._lock:
            self._pending.extend(taken)
            self._submit_batches()

    def results(self, deadline: float | None) -> Iterator[Any]:
        """Yield the results in order."""
        try:
            while True:
                with self._lock:
                    if not self._batches:
                        return
                    future, size = self._batches[0]
                _, results, failure = future.result(deadline and deadline - time.monotonic())
                del future
                self._batches.popleft()
                values, error = serialize.read_outcome(results)
                if error is not None:
                    raise error
                values.reverse()
                while values:
                    yield values.pop()
                if failure:
                    _, error = serialize.read_outcome(failure)
                    assert error is not None
                    raise error
                if self._room is not None:
                    self._room += size
                    self.fill()
        finally:
            self._abandon()

    def _submit_batches(self) -> None:
        workers = max(1, self._workers())
        most = max(FEWEST_IN_FLIGHT, 4 * workers)
        while self._pending and self._in_flight < most:
            size = self._chunksize or min(self._size, math.ceil(len(self._pending) / (2 * workers)))
            items = [self._pending.popleft() for _ in range(min(size, len(self._pending)))]
            begun = time.perf_counter()
            try:
                future = self._submit(self._function, items)
            except Exception as error:
                self._pending.clear()
                future = Future()
                future.set_exception(error)
            self._batches.append((future, len(items)))
            self._in_flight += 1
            submit_time = time.perf_counter() - begun
            future.add_done_callback(functools.partial(self._batch_ended, len(items), submit_time))

    def _batch_ended(self, size: int, submit_time: float, future: Future[Any]) -> None:
        with self._lock:
            self._in_flight -= 1
            if future.cancelled():
                self._pending.clear()
                return
            if future.exception() is None and not self._chunksize:
                seconds, results, _ = future.result()
                self._measure(size, max(seconds, submit_time), len(results))
            self._submit_batches()

    def _measure(self, size: int, seconds: float, result_bytes: int) -> None:
        self._item_time = (self._item_time or seconds / size) / 2 + seconds / size / 2
        fitting = min(BATCH_TIME / max(self._item_time, 1e-9), BATCH_BYTES * size / result_bytes)
        self._size = max(1, min(int(fitting), GROWTH * size, LARGEST_BATCH))

    def _abandon(self) -> None:
        with self._lock:
            self._pending.clear()
            left = [future for future, _ in self._batches if not future.done()]
        if left:
            self._cancel(set(left))
