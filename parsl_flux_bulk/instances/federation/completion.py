"""A federation's completion: one queue, into which members push their events.

An instance that pushes by itself, such as a relayed block, fills the queue from its own thread. For any other
one a :class:`PollingSource` waits in that instance's completion.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import cast

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    CHANNEL_VARIABLE,
    ChannelAddress,
    Completion,
    Event,
    Instance,
    JobEnded,
    JobId,
    JobResult,
    PeerId,
    PeerLost,
    PeerMessage,
)
from parsl_flux_bulk.instances.events import (
    OWN_ID,
    SCOPE_BITS,
    EventQueue,
    EventSink,
    EventSource,
    MemberInstance,
    PushInstance,
)
from parsl_flux_bulk.instances.federation.members import Member, MemberState
from parsl_flux_bulk.instances.federation.registry import MemberRegistry

logger = logging.getLogger(__name__)

OPEN_TIMEOUT = 30.0
"""Seconds that an instance's completion and channel may take to open."""

CLOSE_TIMEOUT = 20.0
"""Seconds that an instance's completion may take to close."""

KEY_PREFIX = "federation:"
_keys = itertools.count(1)


class FederationCompletion:
    """Reports the events of all members; see :class:`~parsl_flux_bulk.instances.base.Completion`.

    Attributes
    ----------
    key : str
        Stands for the channel's address in a jobspec, until a member is chosen for the job.
    """

    def __init__(self, registry: MemberRegistry) -> None:
        self.key = f"{KEY_PREFIX}{next(_keys)}"
        self._registry = registry
        self._queue = EventQueue()
        self._sources: dict[int, EventSource] = {}
        self._addresses: dict[int, Mapping[str, str]] = {}
        self._watched: set[JobId] = set()
        self._peers: dict[PeerId, EventSource] = {}
        self._closed = False
        registry.attach(self)

    # -- Completion -----------------------------------------------------------------------------

    def watch(self, job_id: JobId) -> None:
        with self._registry.lock:
            source = self._sources.get(job_id >> SCOPE_BITS)
            if source is None:
                self.put([JobEnded(job_id, self._registry.unplaced_result(job_id))])
                return
            self._watched.add(job_id)
        with contextlib.suppress(InstanceLost):  # The source reports the loss.
            source.watch(job_id)

    def poll(self, timeout: float | None) -> list[Event]:
        if self._closed:
            raise InstanceLost("the completion is closed")
        return self._queue.get(timeout)

    def send(self, peer: PeerId, body: bytes) -> None:
        source = self._peers.get(peer)
        if source is not None:
            source.send(peer, body)

    def channel(self) -> ChannelAddress:
        """Return the key; each job gets the address in the member where it is placed."""
        return ChannelAddress({CHANNEL_VARIABLE: self.key})

    def wake(self) -> None:
        self._queue.wake()

    def close(self) -> None:
        with self._registry.lock:
            self._closed = True
            self._registry.detach(self)
            sources = list(self._sources.values())
            self._sources.clear()
        for source in sources:
            source.close()

    # -- MemberListener -------------------------------------------------------------------------

    def put(self, events: Sequence[Event]) -> None:
        self._queue.put(events)

    def open(self, member: Member) -> None:
        try:
            source = subscribe(member.instance, self, member.number)
            address = source.channel().environment
        except InstanceLost as error:
            self._registry.remove(member, str(error))
            return
        with self._registry.lock:
            if member.state is not MemberState.REMOVED and not self._closed:
                self._sources[member.number] = source
                self._addresses[member.number] = address
                return
        source.close()

    def address_in(self, member: Member) -> Mapping[str, str]:
        return self._addresses.get(member.number, {})

    def member_removed(self, member: Member, result: JobResult) -> None:
        jobs = {job_id for job_id in self._watched if member.has_job(job_id)}
        self._watched -= jobs
        peers = [peer for peer, source in self._peers.items() if source.scope == member.number]
        for peer in peers:
            del self._peers[peer]
        self.put([*(JobEnded(job_id, result) for job_id in jobs), *(PeerLost(peer) for peer in peers)])

    def close_source(self, member: Member) -> None:
        source = self._sources.pop(member.number, None)
        if source is not None:
            source.close()

    # -- EventSink ------------------------------------------------------------------------------

    def push(self, source: EventSource, events: Sequence[Event]) -> None:
        registry = self._registry
        with registry.lock:
            member = registry.member_of(source.scope << SCOPE_BITS)
            if member is None:
                return
            for event in events:
                if isinstance(event, PeerMessage):
                    self._peers[event.peer] = source
                elif isinstance(event, JobEnded):
                    registry.job_ended(member, event.job_id)
                    self._watched.discard(event.job_id)
                elif isinstance(event, PeerLost):
                    self._peers.pop(event.peer, None)
            self.put(events)

    def lost(self, source: EventSource, why: str) -> None:
        member = self._registry.member_of(source.scope << SCOPE_BITS)
        if member is not None:
            self._registry.remove(member, why)


def subscribe(instance: MemberInstance, sink: EventSink, scope: int) -> EventSource:
    """Have an instance's events pushed to `sink`. Raises InstanceLost."""
    if isinstance(instance, PushInstance):
        return instance.subscribe(sink, scope)
    return PollingSource(instance, sink, scope)


class PollingSource:
    """Pushes the events of an instance that can only be polled, from a thread in its completion."""

    def __init__(self, instance: Instance, sink: EventSink, scope: int) -> None:
        self.scope = scope
        self._instance = instance
        self._sink = sink
        self._calls: deque[Callable[[Completion], None]] = deque()
        self._stop = False
        opened: Future[tuple[Completion, ChannelAddress]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name=f"federation-member-{scope}", daemon=True
        )
        self._thread.start()
        try:
            self._completion, self._address = opened.result(OPEN_TIMEOUT)
        except FutureTimeout:
            self._stop = True
            raise InstanceLost(f"its channel was not open within {OPEN_TIMEOUT:g} s") from None

    def channel(self) -> ChannelAddress:
        return self._address

    def watch(self, job_id: JobId) -> None:
        self._call(lambda completion: completion.watch(job_id & OWN_ID))

    def send(self, peer: PeerId, body: bytes) -> None:
        _, own = cast("tuple[int, PeerId]", peer)
        self._call(lambda completion: completion.send(own, body))

    def close(self) -> None:
        self._stop = True
        self._completion.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _call(self, function: Callable[[Completion], None]) -> None:
        self._calls.append(function)
        self._completion.wake()

    def _run(self, opened: Future[tuple[Completion, ChannelAddress]]) -> None:
        try:
            completion = self._instance.completion()
            try:
                opened.set_result((completion, completion.channel()))
                while not self._stop:
                    while self._calls:
                        self._calls.popleft()(completion)
                    if events := completion.poll(None):
                        self._sink.push(self, self._scoped(events))
            finally:
                completion.close()
        except Exception as error:
            why = error if isinstance(error, InstanceLost) else InstanceLost(repr(error))
            if why is not error:
                logger.exception("thread failed name=%s", self._thread.name)
            if not opened.done():
                opened.set_exception(why)
            elif not self._stop:
                self._sink.lost(self, str(why))

    def _scoped(self, events: Sequence[Event]) -> list[Event]:
        scoped: list[Event] = []
        for event in events:
            if isinstance(event, JobEnded):
                scoped.append(JobEnded(self.scope << SCOPE_BITS | event.job_id, event.result))
            elif isinstance(event, PeerMessage):
                scoped.append(PeerMessage((self.scope, event.peer), event.body))
            elif isinstance(event, PeerLost):
                scoped.append(PeerLost((self.scope, event.peer)))
        return scoped
