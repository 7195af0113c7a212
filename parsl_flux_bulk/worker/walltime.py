"""End calls that exceed their walltime.

At its walltime, a call gets an exception, as in Parsl, so that its ``finally`` blocks run. A call that does
not end within `GRACE`, because it waits inside a function of C, is ended with its process: by the manager of
a worker, or by the watchdog of a rank (:mod:`.lifeline`).
"""

from __future__ import annotations

import _thread
import ctypes
import sys
import time

from parsl_flux_bulk.protocol import serialize
from parsl_flux_bulk.protocol.app_failure import AppFailed, AppFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from parsl_flux_bulk.worker.slot import Slot

GRACE = 1.0
"""Seconds between the exception and the end of the process."""

_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc


def run(seconds: float, function: Callable[..., Any], call: memoryview) -> bytes:
    """Call a function, with an exception in this thread after `seconds`; return the outcome."""
    ended, lock = _thread.allocate_lock(), _thread.allocate_lock()
    ended.acquire()
    caller = ctypes.c_ulong(_thread.get_ident())
    over = False

    def interrupt() -> None:
        if not ended.acquire(timeout=max(0.0, seconds)):
            with lock:
                if not over:
                    _set_exception(caller, ctypes.py_object(_exception(seconds)))

    try:
        # threading.Thread would cost imports.
        _thread.start_new_thread(interrupt, ())
        outcome = serialize.run(function, call)
        with lock:
            over = True
        _set_exception(caller, None)  # the one that the thread has set, but that was not raised yet
        ended.release()
    except AppFailure as error:  # raised just after the call
        outcome = serialize.raised(error)
    return outcome


def _exception(seconds: float) -> type[AppFailure]:
    """Return the exception of a call that took `seconds`; also Parsl's, where Parsl was imported."""
    errors = sys.modules.get("parsl.app.errors")
    timeout = getattr(errors, "AppTimeout", None)
    bases: tuple[type, ...] = (AppFailure, timeout) if timeout else (AppFailure,)

    def init(self: AppFailure) -> None:
        AppFailure.__init__(self, AppFailed(None, seconds))

    return type("AppTimeout", bases, {"__init__": init})


class Timers:
    """When a manager must look whether a worker has exceeded the walltime of its task.

    A worker notes its deadline when it starts a call. So a slot that got a task with a walltime is looked at
    no later than that walltime and the grace from now: no deadline can be earlier.
    """

    def __init__(self) -> None:
        self._slots: dict[Slot, tuple[float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, slot: Slot, seconds: float) -> None:
        """Note that a slot was given a task with a walltime."""
        shortest, at = self._slots.get(slot, (seconds, float("inf")))
        self._slots[slot] = min(shortest, seconds), min(at, time.monotonic() + max(0.0, seconds) + GRACE)

    def earliest(self) -> float:
        """Return the time of the earliest look; there must be one."""
        return min(at for _, at in self._slots.values())

    def due(self, now: float) -> list[Slot]:
        """Return the slots to look at now."""
        return [slot for slot, (_, at) in self._slots.items() if now >= at]

    def look_again(self, slot: Slot, now: float, deadline: float) -> None:
        """Set the next look at a slot; `deadline` is that of its running call, 0 for none."""
        shortest, _ = self._slots.pop(slot)
        if deadline:
            self._slots[slot] = shortest, deadline + GRACE
        elif slot.waiting or (slot.worker is not None and slot.worker.given):
            self._slots[slot] = shortest, now + max(0.0, shortest) + GRACE
