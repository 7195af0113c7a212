"""A federation's completion: one queue, into which members push their events from their own threads."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    Capacity,
    ChannelAddress,
    Event,
    JobEnded,
    JobId,
    JobResult,
    PeerId,
    PeerLost,
    PeerMessage,
    Usage,
)
from parsl_flux_bulk.instances.events import SCOPE_BITS, EventQueue, EventSource, subscribe
from parsl_flux_bulk.instances.federation.members import Member, MemberState
from parsl_flux_bulk.protocol import variables

KEY_PREFIX = "federation:"
_keys = itertools.count(1)


class FederationCompletion:
    """Reports the events of all members; see :class:`.base.Completion`. Made by `MemberRegistry`.

    Parameters
    ----------
    lock : context manager
        The registry's lock.
    job_ended : callable
        Called, under the lock, with each job that ended.
    lost : callable
        Called with the number of a member that was lost, and why.
    unplaced : callable
        Returns the result of a job that is in no member.
    resized : callable
        Called, under the lock, with the number of a member and what it has now.
    closed : callable
        Called with this completion when it closes.

    Attributes
    ----------
    key : str
        Stands for the channel's address in a jobspec, until a member is chosen for the job.
    """

    def __init__(
        self,
        lock: AbstractContextManager[bool],
        *,
        job_ended: Callable[[JobId], None],
        lost: Callable[[int, str], None],
        unplaced: Callable[[JobId], JobResult],
        resized: Callable[[int, Capacity], None],
        closed: Callable[[FederationCompletion], object],
    ) -> None:
        self.key = f"{KEY_PREFIX}{next(_keys)}"
        self._lock = lock
        self._job_ended = job_ended
        self._lost = lost
        self._unplaced = unplaced
        self._resized = resized
        self._on_close = closed
        self._queue = EventQueue()
        self._sources: dict[int, EventSource] = {}
        self._watched: set[JobId] = set()
        self._peers: dict[PeerId, EventSource] = {}
        self._closed = False

    # -- Completion -----------------------------------------------------------------------------

    def watch(self, job_id: JobId) -> None:
        with self._lock:
            source = self._sources.get(job_id >> SCOPE_BITS)
            if source is None:
                self.put([JobEnded(job_id, self._unplaced(job_id))])
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

    def send_from_any_thread(self, peer: PeerId, body: bytes, slot: int | None = None) -> bool:
        return False

    def channel(self) -> ChannelAddress:
        """Return the key; each job gets the address in the member where it is placed."""
        return ChannelAddress({variables.CHANNEL: self.key})

    def survey(self) -> None:
        """Each member reports for itself."""
        for source in list(self._sources.values()):
            with contextlib.suppress(InstanceLost):  # The source reports the loss.
                source.survey()

    def wake(self) -> None:
        self._queue.wake()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._on_close(self)
            sources = list(self._sources.values())
            self._sources.clear()
        for source in sources:
            source.close()

    # -- for the registry -----------------------------------------------------------------------

    def put(self, events: Sequence[Event]) -> None:
        """Queue events."""
        self._queue.put(events)

    def open(self, member: Member) -> None:
        """Subscribe to a member; blocks."""
        try:
            source = subscribe(member.instance, self, member.number)
        except InstanceLost as error:
            self._lost(member.number, str(error))
            return
        with self._lock:
            if member.state is not MemberState.REMOVED and not self._closed:
                self._sources[member.number] = source
                return
        source.close()

    def address_in(self, member: Member) -> Mapping[str, str]:
        """Return the environment with which a member's jobs reach the channel."""
        source = self._sources.get(member.number)
        return source.address.environment if source else {}

    def member_removed(self, member: Member, result: JobResult) -> EventSource | None:
        """End a removed member's jobs with `result`, and its peers; return the source to close."""
        jobs = {job_id for job_id in self._watched if member.has_job(job_id)}
        self._watched -= jobs
        peers = [peer for peer, source in self._peers.items() if source.scope == member.number]
        for peer in peers:
            del self._peers[peer]
        self.put([*(JobEnded(job_id, result) for job_id in jobs), *(PeerLost(peer) for peer in peers)])
        return self._sources.pop(member.number, None)

    # -- EventSink ------------------------------------------------------------------------------

    def push(self, source: EventSource, events: Sequence[Event]) -> None:
        with self._lock:
            if self._sources.get(source.scope) is not source:
                return  # The member was removed, and its jobs have ended.
            for event in events:
                if isinstance(event, PeerMessage):
                    self._peers[event.peer] = source
                elif isinstance(event, JobEnded):
                    self._job_ended(event.job_id)
                    self._watched.discard(event.job_id)
                elif isinstance(event, PeerLost):
                    self._peers.pop(event.peer, None)
                elif isinstance(event, Usage):
                    self._resized(source.scope, event.capacity)
            self.put(events)

    def lost(self, source: EventSource, why: str) -> None:
        self._lost(source.scope, why)
