"""Call user code in threads that serve every job: log whatever it raises."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CallbackFuture(Future[T]):
    """A future whose callbacks may raise SystemExit and KeyboardInterrupt.

    :class:`concurrent.futures.Future` logs only subclasses of Exception. Any other exception would skip the
    remaining callbacks and end the completion thread, and with it all other futures.
    """

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        super().add_done_callback(functools.partial(call_logged, fn))


def call_logged(function: Callable[..., object], /, *arguments: object) -> None:
    """Call a function; log whatever it raises."""
    try:
        function(*arguments)
    except BaseException as error:
        logger.error("callback failed function=%s: %r", _name(function), error, exc_info=True)


def _name(function: Callable[..., object]) -> str:
    inner = getattr(function, "func", function)  # of a functools.partial, whose arguments may be long
    return getattr(inner, "__qualname__", None) or type(inner).__qualname__
