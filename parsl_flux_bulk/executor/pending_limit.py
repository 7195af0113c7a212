"""Backpressure: a thread that submits waits while too many tasks have not ended."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger(__name__)


class PendingLimit:
    """Bound on the tasks of an executor that can run and have not ended.

    A call that waits goes on when an eighth of the tasks has ended, so that it is not woken for each of them.

    Parameters
    ----------
    limit : int
    label : str
        Name of the executor, for the log.
    """

    def __init__(self, limit: int, label: str) -> None:
        self._limit = limit
        self._low = limit - max(1, limit // 8)
        self._label = label
        self._condition = threading.Condition()
        self._pending = 0
        self._waiting = 0
        self._said = False
        self._closed = False

    @property
    def pending(self) -> int:
        """Number of tasks that are counted."""
        return self._pending

    def enter(self) -> None:
        """Count a task, as soon as there is room: at once in the callback of a future.

        There, the wait would block the thread that ends tasks.
        """
        with self._condition:
            if self._pending >= self._limit and not self._closed and not _in_callback():
                self._say()
                self._waiting += 1
                try:
                    self._condition.wait_for(lambda: self._closed or self._pending <= self._low)
                finally:
                    self._waiting -= 1
            self._pending += 1

    def count(self) -> None:
        """Count a task without waiting."""
        with self._condition:
            self._pending += 1

    def leave(self, _: object = None) -> None:
        """Stop counting a task; a callback of futures."""
        with self._condition:
            self._pending -= 1
            if self._waiting and self._pending <= self._low:
                self._condition.notify_all()

    def close(self) -> None:
        """Let everyone go on: the executor is shut down."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _say(self) -> None:
        if not self._said:
            self._said = True
            logger.info(
                "submit waits executor=%s pending=%d: max_pending_tasks reached; later waits are not logged",
                self._label,
                self._pending,
            )


def submit_within(limit: PendingLimit | None, submit: Callable[[], Future[Any]]) -> Future[Any]:
    """Submit a task when there is room, and count it until it ends."""
    if limit is None:
        return submit()
    limit.enter()
    try:
        future = submit()
    except BaseException:
        limit.leave()
        raise
    future.add_done_callback(limit.leave)
    return future


def _in_callback() -> bool:
    """Tell whether this thread is calling the callbacks of a future."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_invoke_callbacks":
            return True
        frame = frame.f_back
    return False
