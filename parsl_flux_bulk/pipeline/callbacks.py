"""Call user code in threads that serve every job: log whatever it raises."""

from __future__ import annotations

import logging
import threading
from _thread import RLock
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import PENDING
from typing import TYPE_CHECKING, Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Condition(RLock):  # type: ignore[misc]  # not final at run time
    """A condition variable that is one object until a thread waits for it.

    A :class:`threading.Condition` is eight objects. The garbage collector visits each of them several times
    while a flood of futures is pending, which is half of the cost of submitting a short task.
    """

    _waiting: threading.Condition | None = None

    @property
    def waits(self) -> bool:
        """Whether a thread waits."""
        return self._waiting is not None

    def wait(self, timeout: float | None = None) -> bool:
        if self._waiting is None:
            self._waiting = threading.Condition(self)
        return self._waiting.wait(timeout)

    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, None  # a reference cycle otherwise
        if waiting is not None:
            waiting.notify_all()


class CallbackFuture(Future[T]):
    """A small future, whose callbacks may raise SystemExit and KeyboardInterrupt.

    :class:`concurrent.futures.Future` logs only subclasses of Exception. Any other exception would skip the
    remaining callbacks and end the completion thread, and with it all other futures.
    """

    if TYPE_CHECKING:  # a callback may take a subclass

        def add_done_callback(self, fn: Callable[[Any], object]) -> None: ...

    def __init__(self) -> None:
        # As in Future, apart from the condition.
        self._condition = _Condition()  # type: ignore[assignment]
        self._state = PENDING
        self._result = None
        self._exception = None
        self._waiters = []
        self._done_callbacks: list[Callable[..., object]] = []

    @property
    def is_awaited(self) -> bool:
        """Whether a thread waits for the result."""
        condition: Any = self._condition
        return bool(condition.waits)

    def _invoke_callbacks(self) -> None:
        for callback in self._done_callbacks:
            call_logged(callback, self)


def call_logged(function: Callable[..., object], /, *arguments: object) -> None:
    """Call a function; log whatever it raises."""
    try:
        function(*arguments)
    except BaseException as error:
        logger.error("callback failed function=%s: %r", _name(function), error, exc_info=True)


def _name(function: Callable[..., object]) -> str:
    inner = getattr(function, "func", function)  # of a functools.partial, whose arguments may be long
    return getattr(inner, "__qualname__", None) or type(inner).__qualname__
