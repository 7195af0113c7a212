"""Hand calls to the thread that waits in a completion."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from parsl_flux_bulk.instances.base import Completion, Event

T = TypeVar("T")


class CallQueue(Generic[T]):
    """Calls from any thread into the thread that waits in a completion.

    Wake-ups coalesce: while the thread is awake, a call costs its sender no system call. The thread looks at
    the queue once more after it has begun to accept wake-ups, so no call waits for the next event.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[T], None]] = deque()
        self._awake = True
        self._wake: Callable[[], None] = _nothing

    def put(self, call: Callable[[T], None]) -> None:
        """Have the thread run `call`, with the thread's own state as argument."""
        self._calls.append(call)
        self.wake()

    def wake(self) -> None:
        """End the thread's present or next wait."""
        if not self._awake:
            self._awake = True
            self._wake()

    # -- the thread ---------------------------------------------------------------------------

    def run(self, state: T) -> None:
        """Run every call in the queue."""
        while self._calls:
            self._calls.popleft()(state)

    def poll(self, completion: Completion, timeout: Callable[[], float | None]) -> list[Event]:
        """Wait for events or a wake-up; do not wait if a call is in the queue.

        Parameters
        ----------
        timeout : callable
            Called once wake-ups are accepted: whatever it takes into account cannot be overlooked. Returns
            seconds as `Completion.poll` takes them.
        """
        self._wake = completion.wake
        self._awake = False
        try:
            return completion.poll(0 if self._calls else timeout())
        finally:
            self._awake = True


def _nothing() -> None:
    pass
