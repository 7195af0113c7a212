"""Push delivery: an instance whose own thread hands over events, instead of waiting to be polled.

::

    PushInstance.subscribe(sink, scope) ──> EventSource    watch, send
                      sink.push(source, events)  <──┘      job ends and messages, in the instance's own thread
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from parsl_flux_bulk.instances.base import ChannelAddress, Connection, Event, Instance, JobId, PeerId

SCOPE_BITS = 64
"""Low bits of a scoped job id that are the instance's own id."""

OWN_ID = (1 << SCOPE_BITS) - 1


class EventSink(Protocol):
    """Receives events, in the source's thread."""

    def push(self, source: EventSource, events: Sequence[Event]) -> None:
        """Take events, whose ids are scoped."""

    def lost(self, source: EventSource, why: str) -> None:
        """The instance is lost; nothing follows."""


class EventSource(Protocol):
    """One subscription to an instance; every method may be called by any thread.

    Attributes
    ----------
    scope : int
        Number of which job ids and peers of this source bear the mark: ``scope << SCOPE_BITS | own id``.
    """

    scope: int

    def channel(self) -> ChannelAddress:
        """Open the channel; see :meth:`.base.Completion.channel`."""

    def watch(self, job_id: JobId) -> None:
        """Report the end of the job with this scoped id."""

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send a message to a peer; without effect for a peer that is lost."""

    def close(self) -> None:
        """End the subscription; may be called twice."""


@runtime_checkable
class PushInstance(Protocol):
    """A started instance that pushes events; otherwise as :class:`.base.Instance`."""

    @property
    def description(self) -> str: ...
    def connect(self) -> Connection: ...
    def subscribe(self, sink: EventSink, scope: int) -> EventSource:
        """Deliver the events of watched jobs and of peers to `sink`. Raises InstanceLost."""

    def job_name(self, job_id: JobId) -> str: ...
    def close(self) -> None: ...


MemberInstance: TypeAlias = Instance | PushInstance


class EventQueue:
    """Events for one thread that waits, from any number of threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._events: list[Event] = []
        self._woken = False

    def put(self, events: Sequence[Event]) -> None:
        """Add events."""
        with self._changed:
            self._events += events
            self._changed.notify()

    def wake(self) -> None:
        """Make `get` return; wake-ups coalesce."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def get(self, timeout: float | None) -> list[Event]:
        """Wait for events or a wake-up; see :meth:`.base.Completion.poll`."""
        with self._changed:
            if not (self._events or self._woken) and timeout != 0:
                self._changed.wait_for(lambda: self._events or self._woken, timeout)
            self._woken = False
            events, self._events = self._events, []
            return events
