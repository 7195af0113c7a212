"""A block that joined the relay, as an instance that pushes its events.

::

    RelayedInstance      JOINED ──> CLOSED      the executor told the block to end
     ├─ RelayedConnection    └────> LOST        the block or its connection ended
     └─ RelayedSource

CLOSED and LOST are final: the first of the two counts. Each verb of a connection is a request that waits for
the block's reply. The relay's thread converts a block's records to events, and pushes them to the subscriber.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, cast

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.errors import InstanceError, InstanceLost, OutputUnavailable
from parsl_flux_bulk.instances.base import (
    FLUX_IN_FLIGHT,
    Capacity,
    ChannelAddress,
    Event,
    JobEnded,
    JobId,
    JobRequest,
    Output,
    PeerId,
    PeerLost,
    PeerMessage,
    Position,
    Refusal,
)
from parsl_flux_bulk.instances.events import OWN_ID, SCOPE_BITS, EventSink, scoped_usage
from parsl_flux_bulk.jobspec.common_parts import CommonParts, pack_jobspec

REPLY_TIMEOUT = 300.0
"""Seconds that a joined block may take to answer a request."""

_F58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class BlockState(enum.Enum):
    """See the module."""

    JOINED = "joined"
    CLOSED = "closed"
    LOST = "lost"


class RelayedInstance:
    """A joined block; see :class:`parsl_flux_bulk.instances.events.PushInstance`. Made by RelayServer.

    Attributes
    ----------
    block_id, host, pid, environment
        See :class:`.protocol.Hello`.
    description : str
    ends_at : float or None
        When the allocation ends, in ``time.time()`` seconds, if the block knows.
    descriptor : int
        File descriptor of the connection.
    state : BlockState
    in_flight : int
        That of its connections; may be set.
    """

    def __init__(
        self, hello: protocol.Hello, descriptor: int, send: Callable[[list[protocol.Record]], bool]
    ) -> None:
        self.block_id = hello.block_id
        self.host = hello.host
        self.pid = hello.pid
        self.environment = hello.environment
        self.description = f"block {hello.block_id} on {hello.host}, relayed: {hello.description}"
        self.ends_at = None if hello.seconds_left is None else time.time() + hello.seconds_left
        self.descriptor = descriptor
        self.state = BlockState.JOINED
        self.in_flight = FLUX_IN_FLIGHT
        self._name_of_zero = hello.name_of_zero
        self.parts = CommonParts()
        self.submitting = threading.Lock()  # the block reads jobs in the order in which they were packed
        self._send = send
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._replies: dict[int, Future[bytes]] = {}
        self._sources: dict[int, RelayedSource] = {}
        self._why = ""

    def connect(self) -> RelayedConnection:
        """Open a connection."""
        if self.state is not BlockState.JOINED:
            raise self.error()
        return RelayedConnection(self)

    def subscribe(self, sink: EventSink, scope: int) -> RelayedSource:
        """Deliver events to `sink`; see :meth:`.PushInstance.subscribe`."""
        number = next(self._numbers)
        address = ChannelAddress(self.request("open", number))
        source = RelayedSource(self, number, address, sink, scope)
        with self._lock:
            self._sources[number] = source
            if self.state is BlockState.JOINED:
                return source
        raise self.error()

    def job_name(self, job_id: JobId) -> str:
        """Return the id as the block's instance formats it."""
        if self._name_of_zero == "0":
            return str(job_id)
        digits = ""
        while job_id or not digits:
            job_id, digit = divmod(job_id, len(_F58))
            digits = _F58[digit] + digits
        return self._name_of_zero[:-1] + digits

    def close(self) -> None:
        """Tell the block to cancel its jobs and to end; does not wait for that."""
        if self.state is BlockState.JOINED:
            self._send([(protocol.BYE, 0, 0, b"the executor is done with this block")])
        self.end(BlockState.CLOSED, "it was closed")

    # -- for connections and sources ------------------------------------------------------------

    def send(self, kind: int, end: int, what: int = 0, body: bytes = b"") -> None:
        """Send a record. Raises InstanceLost."""
        if self.state is not BlockState.JOINED or not self._send([(kind, end, what, body)]):
            raise self.error()

    def request(self, verb: str, argument: Any = None) -> Any:
        """Send a request and wait for its reply.

        Raises
        ------
        InstanceLost
            The block ended or does not answer.
        InstanceError
            The block answered with an error.
        """
        number, reply = next(self._numbers), Future[bytes]()
        with self._lock:
            self._replies[number] = reply
        try:
            self.send(protocol.REQUEST, number, 0, json.dumps([verb, argument]).encode())
            return json.loads(reply.result(REPLY_TIMEOUT))
        except FutureTimeout:
            raise InstanceLost(
                f"{self.description}: no answer to {verb!r} within {REPLY_TIMEOUT:g} s"
            ) from None
        finally:
            self._replies.pop(number, None)

    def unsubscribe(self, source: RelayedSource) -> None:
        """End a subscription."""
        if self._sources.pop(source.number, None) is not None:
            # Not by `request`: the reply is not awaited, since the relay's own thread may be calling.
            body = json.dumps(["close", source.number]).encode()
            self._send([(protocol.REQUEST, next(self._numbers), 0, body)])

    def error(self) -> InstanceLost:
        """Return the error to raise when the block has ended."""
        return InstanceLost(f"{self.description}: {self._why or 'its connection ended'}")

    # -- for the server -------------------------------------------------------------------------

    def receive(self, records: list[protocol.Record]) -> str | None:
        """Act on records; return why the block ends, if it says so."""
        events: dict[RelayedSource, list[Event]] = {}
        goodbye = None
        for kind, end, what, body in records:
            if kind == protocol.REPLY:
                with self._lock:
                    reply = self._replies.pop(end, None)
                if reply is not None and what:
                    why = body.decode(errors="replace")
                    reply.set_exception(InstanceError(f"{self.description}: request failed: {why}"))
                elif reply is not None:
                    reply.set_result(body)
            elif kind == protocol.BYE:
                goodbye = body.decode(errors="replace")
            elif (source := self._sources.get(end)) and (event := source.event(kind, what, body)):
                events.setdefault(source, []).append(event)
        for source, pushed in events.items():
            source.sink.push(source, pushed)
        return goodbye

    def end(self, state: BlockState, why: str) -> bool:
        """Change from JOINED to `state`, and end all that waits; return False if it has ended already."""
        with self._lock:
            if self.state is not BlockState.JOINED:
                return False
            self.state, self._why = state, why
            replies, sources = list(self._replies.values()), list(self._sources.values())
            self._replies.clear()
        for reply in replies:
            reply.set_exception(self.error())
        for source in sources:
            source.sink.lost(source, str(self.error()))
        return True


class RelayedConnection:
    """Submits and cancels; see :class:`.base.Connection`. May be used by any thread."""

    def __init__(self, instance: RelayedInstance) -> None:
        self.in_flight = instance.in_flight
        self._request = instance.request
        self._parts = instance.parts
        self._submitting = instance.submitting

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        if not requests:
            return []
        with self._submitting:
            jobs = []
            for request in requests:
                parts = self._parts.split(request.jobspec)
                self._parts.sent(parts)
                jobs.append([*pack_jobspec(parts, request.jobspec), request.urgency])
            answers = self._request("submit", jobs)
        return [Refusal(answer) if isinstance(answer, str) else int(answer) for answer in answers]

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        self._request("cancel", [list(job_ids), reason])

    def output(self, job_id: JobId, start: Position) -> Output:
        answer = self._request("output", [job_id, start])
        if isinstance(answer, str):
            raise OutputUnavailable(answer)
        out, err, (first, second) = answer
        return Output(out, err, (first, second))

    def capacity(self) -> Capacity:
        return Capacity(*self._request("capacity"))

    def close(self) -> None:
        """Do nothing: all connections share the block's."""


class RelayedSource:
    """One subscription; see :class:`parsl_flux_bulk.instances.events.EventSource`. Peers are numbers."""

    def __init__(
        self, instance: RelayedInstance, number: int, address: ChannelAddress, sink: EventSink, scope: int
    ) -> None:
        self.number = number
        self.address = address
        self.sink = sink
        self.scope = scope
        self._base = scope << SCOPE_BITS
        self._instance = instance

    def watch(self, job_id: JobId) -> None:
        self._instance.send(protocol.WATCH, self.number, job_id & OWN_ID)

    def send(self, peer: PeerId, body: bytes) -> None:
        with contextlib.suppress(InstanceLost):  # The sink hears of that.
            self._instance.send(protocol.SEND, self.number, cast("int", peer) & OWN_ID, body)

    def survey(self) -> None:
        self._instance.send(protocol.SURVEY, self.number)

    def event(self, kind: int, what: int, body: bytes) -> Event | None:
        """Convert a record to an event; None for any other record."""
        if kind == protocol.MESSAGE:
            return PeerMessage(self._base | what, body)
        if kind == protocol.ENDED:
            return JobEnded(self._base | what, protocol.decode_result(body))
        if kind == protocol.PEER_LOST:
            return PeerLost(self._base | what)
        if kind == protocol.USAGE:
            return scoped_usage(protocol.decode_usage(body), self.scope)
        return None

    def close(self) -> None:
        self._instance.unsubscribe(self)
