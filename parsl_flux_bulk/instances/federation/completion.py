"""A federation's completion: one queue, filled by a thread for each member, in its own completion."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    CHANNEL_VARIABLE,
    ChannelAddress,
    Completion,
    Event,
    JobEnded,
    JobId,
    PeerId,
    PeerLost,
    PeerMessage,
)
from parsl_flux_bulk.instances.federation.members import MEMBER_SHIFT, Member, lost_result, own_id

if TYPE_CHECKING:
    from parsl_flux_bulk.instances.federation.federation import Federation

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 20.0
"""Seconds that a member may take to close."""

KEY_PREFIX = "federation:"
_keys = itertools.count(1)


class Branch:
    """One member's completion, and the thread that waits in it, for one of the federation's."""

    def __init__(self, owner: FederationCompletion, member: Member) -> None:
        self.member = member
        self.watched: set[JobId] = set()
        self.peers: set[PeerId] = set()
        self.address: Mapping[str, str] = {}
        self.opened = threading.Event()
        self._owner = owner
        self._completion: Completion | None = None
        self._inbox: deque[Callable[[Completion], None]] = deque()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"block-{member.name}", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[Completion], None]) -> None:
        """Run `function` in the thread."""
        self._inbox.append(function)
        completion = self._completion
        if completion is not None:
            completion.wake()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stop = True
        self.call(lambda _: None)
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        try:
            completion = self.member.instance.completion()
            try:
                self.address = completion.channel().environment
                self._completion = completion
                self.opened.set()
                while not self._stop:
                    while self._inbox:
                        self._inbox.popleft()(completion)
                    if events := completion.poll(None):
                        self._owner.take_from(self, events)
            finally:
                self._completion = None
                completion.close()
        except InstanceLost as error:
            self._owner.federation.remove(self.member, str(error))
        except Exception as error:
            logger.exception("the thread of block %s failed", self.member.name)
            self._owner.federation.remove(self.member, repr(error))
        finally:
            self.opened.set()


class FederationCompletion:
    """Hears of all members' jobs and peers."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.key = f"{KEY_PREFIX}{next(_keys)}"
        self._changed = threading.Condition(federation.lock)
        self._branches: dict[Member, Branch] = {}
        self._events: list[Event] = []
        self._woken = False
        self._closed = False

    # -- Completion -----------------------------------------------------------------------------

    def watch(self, job_id: JobId) -> None:
        own = own_id(job_id)
        with self._changed:
            branch = self._branch(job_id)
            if branch is not None:
                branch.watched.add(own)
            elif job_id >> MEMBER_SHIFT:
                self._events.append(JobEnded(job_id, lost_result("its block is not there any more")))
            else:
                self._events.append(JobEnded(job_id, self.federation.why_nowhere(job_id)))
        if branch is not None:
            branch.call(lambda completion: completion.watch(own))

    def poll(self, timeout: float | None) -> list[Event]:
        if self._closed:
            raise InstanceLost("the completion is closed")
        with self._changed:
            if timeout != 0:
                self._changed.wait_for(lambda: self._events or self._woken, timeout)
            self._woken = False
            events, self._events = self._events, []
            return events

    def send(self, peer: PeerId, body: bytes) -> None:
        member, own = cast("tuple[Member, PeerId]", peer)
        branch = self._branches.get(member)
        if branch is not None:
            branch.call(lambda completion: completion.send(own, body))

    def channel(self) -> ChannelAddress:
        """A name for it only: each job gets the address in the member that it is placed in."""
        return ChannelAddress({CHANNEL_VARIABLE: self.key})

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.federation.closed(self)
        for branch in list(self._branches.values()):
            branch.stop()

    # -- for the federation and the branches ------------------------------------------------------

    def adopt(self, member: Member) -> Branch:
        """Serve a new member."""
        branch = self._branches[member] = Branch(self, member)
        return branch

    def address_in(self, member: Member) -> Mapping[str, str]:
        """The way from a member's jobs to this completion."""
        branch = self._branches.get(member)
        return branch.address if branch is not None else {}

    def put(self, events: Sequence[Event]) -> None:
        """Add events."""
        with self._changed:
            self._events.extend(events)
            self._changed.notify_all()

    def take_from(self, branch: Branch, events: Sequence[Event]) -> None:
        """Add a member's events, as the federation's."""
        member = branch.member
        with self._changed:
            if member.lost:
                return
            for event in events:
                if isinstance(event, JobEnded):
                    self.federation.job_ended(member, event.job_id)
                    branch.watched.discard(event.job_id)
                    job_id = (member.number << MEMBER_SHIFT) | event.job_id
                    self._events.append(JobEnded(job_id, event.result))
                elif isinstance(event, PeerMessage):
                    branch.peers.add(event.peer)
                    self._events.append(PeerMessage((member, event.peer), event.body))
                elif isinstance(event, PeerLost):
                    branch.peers.discard(event.peer)
                    self._events.append(PeerLost((member, event.peer)))
            self._changed.notify_all()

    def member_lost(self, member: Member) -> None:
        """End a lost member's jobs and peers."""
        branch = self._branches.get(member)
        if branch is not None:
            name = f"{self.federation.member_kind} {member.name}"
            # Relayed blocks say themselves which they are.
            result = lost_result(member.lost if member.lost.startswith(name) else f"{name}: {member.lost}")
            ids = [(member.number << MEMBER_SHIFT) | own for own in branch.watched]
            self.put([JobEnded(job_id, result) for job_id in ids])
            self.put([PeerLost((member, peer)) for peer in branch.peers])

    def part_with(self, member: Member) -> None:
        """End a lost member's thread."""
        branch = self._branches.pop(member, None)
        if branch is not None:
            branch.stop()

    def _branch(self, job_id: JobId) -> Branch | None:
        member = self.federation.member_of(job_id)
        return self._branches.get(member) if member is not None else None
