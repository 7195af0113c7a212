"""Push delivery: a source hands over events in its own thread, instead of waiting to be polled.

::

    subscribe(instance, sink, scope) ──> EventSource    watch, send
          sink.push(source, events)  <──┘

A source with a scope other than 0 marks job ids and peers with it, so that one sink can tell sources apart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    ChannelAddress,
    Completion,
    Connection,
    Event,
    Instance,
    JobEnded,
    JobId,
    PeerId,
    PeerLost,
    PeerMessage,
    Usage,
    WorkerCores,
)
from parsl_flux_bulk.instances.call_queue import CallQueue

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

SCOPE_BITS = 64
"""Low bits of a scoped job id that are the instance's own id; the scope is above them."""

OWN_ID = (1 << SCOPE_BITS) - 1

OPEN_TIMEOUT = 30.0
"""Seconds that an instance's completion and channel may take to open."""

CLOSE_TIMEOUT = 20.0
"""Seconds that an instance's completion may take to close."""


class EventSink(Protocol):
    """Receives events, in the source's thread; nothing follows `lost`."""

    def push(self, source: EventSource, events: Sequence[Event]) -> None: ...
    def lost(self, source: EventSource, why: str) -> None: ...


class EventSource(Protocol):
    """One subscription to an instance, with its channel; every method may be called by any thread."""

    scope: int
    address: ChannelAddress

    def watch(self, job_id: JobId) -> None: ...
    def send(self, peer: PeerId, body: bytes) -> None: ...
    def survey(self) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class PushInstance(Protocol):
    """A started instance that pushes events; otherwise as :class:`.base.Instance`."""

    @property
    def description(self) -> str: ...
    def connect(self) -> Connection: ...
    def subscribe(self, sink: EventSink, scope: int) -> EventSource: ...
    def job_name(self, job_id: JobId) -> str: ...
    def close(self) -> None: ...


MemberInstance: TypeAlias = Instance | PushInstance


def subscribe(instance: MemberInstance, sink: EventSink, scope: int) -> EventSource:
    """Deliver the events of watched jobs and of peers to `sink`. Raises InstanceLost."""
    if isinstance(instance, PushInstance):
        return instance.subscribe(sink, scope)
    return PollingSource(instance, sink, scope)


class PollingSource:
    """Pushes the events of an instance that can only be polled, from a thread in its completion."""

    def __init__(self, instance: Instance, sink: EventSink, scope: int) -> None:
        self.scope = scope
        self._instance = instance
        self._sink = sink
        self._calls: CallQueue[Completion] = CallQueue()
        self._stop = False
        opened: Future[ChannelAddress] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name=f"events-{scope}", daemon=True)
        self._thread.start()
        try:
            self.address = opened.result(OPEN_TIMEOUT)
        except FutureTimeout:
            self._stop = True
            raise InstanceLost(f"its channel was not open within {OPEN_TIMEOUT:g} s") from None

    def watch(self, job_id: JobId) -> None:
        self._calls.put(lambda completion: completion.watch(job_id & OWN_ID))

    def send(self, peer: Any, body: bytes) -> None:
        own: PeerId = peer[1] if self.scope else peer
        self._calls.put(lambda completion: completion.send(own, body))

    def survey(self) -> None:
        self._calls.put(lambda completion: completion.survey())

    def close(self) -> None:
        self._stop = True
        self._calls.put(lambda _: None)
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self, opened: Future[ChannelAddress]) -> None:
        try:
            completion = self._instance.completion()
            try:
                opened.set_result(completion.channel())
                while not self._stop:
                    self._calls.run(completion)
                    if events := self._calls.poll(completion, lambda: None):
                        self._sink.push(self, self._scoped(events))
            finally:
                completion.close()
        except Exception as error:
            lost = error if isinstance(error, InstanceLost) else InstanceLost(repr(error))
            if lost is not error:
                logger.exception("thread failed name=%s", self._thread.name)
            if not opened.done():
                opened.set_exception(lost)
            elif not self._stop:
                self._sink.lost(self, str(lost))

    def _scoped(self, events: Sequence[Event]) -> Sequence[Event]:
        if not self.scope:
            return events
        scoped: list[Event] = []
        for event in events:
            if isinstance(event, JobEnded):
                scoped.append(JobEnded(self.scope << SCOPE_BITS | event.job_id, event.result))
            elif isinstance(event, PeerMessage):
                scoped.append(PeerMessage((self.scope, event.peer), event.body))
            elif isinstance(event, PeerLost):
                scoped.append(PeerLost((self.scope, event.peer)))
            elif isinstance(event, Usage):
                scoped.append(scoped_usage(event, self.scope))
        return scoped


def scoped_usage(usage: Usage, scope: int) -> Usage:
    """Mark the jobs of a report with a scope."""

    def scoped(jobs: dict[JobId, _T]) -> dict[JobId, _T]:
        return {scope << SCOPE_BITS | job_id: about for job_id, about in jobs.items()}

    executors = {mark: WorkerCores(c.held, scoped(c.wanted)) for mark, c in usage.executors.items()}
    return replace(usage, waiting=scoped(usage.waiting), scope=scope, executors=executors)


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
