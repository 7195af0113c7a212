"""The block's end of the relay: serves the executor with the instance in the block, until the block ends.

::

    main thread           BlockRelay.serve: receives the executor's packets
    RequestThread         submit, cancel, output, capacity over one connection; open and close subscriptions
    event sources         one for each subscription of the executor, in a completion of the instance

Each thread sends its own records to the executor.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.errors import InstanceError, InstanceLost, OutputUnavailable
from parsl_flux_bulk.instances.base import (
    Connection,
    Event,
    Instance,
    JobEnded,
    JobId,
    JobRequest,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
    Usage,
)
from parsl_flux_bulk.instances.events import EventSource, subscribe
from parsl_flux_bulk.jobspec.common_parts import JobspecReader

JOIN_TIMEOUT = 15.0
"""Seconds that the last requests may take."""

END_TIMEOUT = 20.0
"""Seconds after the end of a block after which its program exits although its threads have not ended."""


class BlockEnd(Exception):
    """Why the block ends.

    Attributes
    ----------
    status : int
        Exit status of the block's program.
    """

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


class Transport(Protocol):
    """Carries records between the block and the executor. Any thread may call `send` and `wake`."""

    def send(self, records: list[protocol.Record]) -> None: ...
    def wake(self) -> None: ...
    def wait(self) -> None: ...

    def receive(self) -> list[protocol.Record]:
        """Return records that have arrived; nothing only if there are none."""

    def ended(self) -> bool:
        """Whether the connection has ended."""

    def close(self, linger: float) -> None:
        """Close; what was sent has `linger` seconds to leave."""


class BlockRelay:
    """What the threads share.

    Parameters
    ----------
    instance : Instance
        Started.
    transport : Transport
        Connected to the executor.
    verbs : mapping
        Further requests: verb -> what answers it, with the connection.
    """

    def __init__(
        self,
        instance: Instance,
        transport: Transport,
        verbs: Mapping[str, Callable[[Connection], object]] | None = None,
    ) -> None:
        self.instance = instance
        self.verbs = verbs or {}
        self.active_jobs: set[JobId] = set()
        self.peer_numbers = itertools.count(1)
        self._transport = transport
        self.subscriptions: dict[int, Subscription] = {}
        self._requests = RequestThread(self)
        self._end: BlockEnd | None = None

    def send(self, records: list[protocol.Record]) -> None:
        """Send records to the executor; from any thread."""
        self._transport.send(records)

    def end(self, why: str, status: int) -> None:
        """End the block soon; from any thread. The first reason counts."""
        if self._end is None:
            self._end = BlockEnd(why, status)
            self._transport.wake()

    def serve(self) -> BlockEnd:
        """Relay until there is a reason to end, end, and return it; the program must exit then."""
        end = self._relay()
        watchdog = threading.Timer(END_TIMEOUT, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()
        self._close(end)
        return end

    def _relay(self) -> BlockEnd:
        self._requests.start()
        while self._end is None:
            # Asked first and acted on last: by then all that was sent before the end is received.
            ended = self._transport.ended()
            try:
                while records := self._transport.receive():
                    for record in records:
                        self._receive(*record)
            except Exception as error:
                self.end(_describe(error), 1)
            if ended:
                self.end("the connection to the executor ended: it has ended, or was silent for too long", 1)
            if self._end is None:
                self._transport.wait()
        return self._end

    def _receive(self, kind: int, end: int, what: int, body: bytes) -> None:
        if kind == protocol.SEND or kind == protocol.WATCH:
            subscription = self.subscriptions.get(end)
            if subscription is not None and kind == protocol.SEND:
                subscription.send(what, body)
            elif subscription is not None:
                subscription.source.watch(what)
        elif kind == protocol.SURVEY and end in self.subscriptions:
            self.subscriptions[end].source.survey()
        elif kind == protocol.REQUEST:
            self._requests.queue.put((end, *json.loads(body)))
        elif kind == protocol.BYE:
            self.end(body.decode(errors="replace"), 0)

    def _close(self, why: BlockEnd) -> None:
        """Tell the executor, cancel the jobs, and end the threads."""
        if why.status:
            self.send([(protocol.BYE, 0, 0, str(why).encode())])
        self._transport.close(linger=1.0)
        if self.active_jobs:
            self._requests.queue.put((0, "cancel", [list(self.active_jobs), f"the block ends: {why}"]))
        self._requests.queue.put(None)
        self._requests.join(JOIN_TIMEOUT)
        for subscription in list(self.subscriptions.values()):
            subscription.source.close()


class RequestThread(threading.Thread):
    """Answers requests in their order.

    Attributes
    ----------
    queue : queue.SimpleQueue
        Of requests (number, verb, argument); None ends the thread.
    """

    def __init__(self, relay: BlockRelay) -> None:
        super().__init__(name="block-requests", daemon=True)
        self._relay = relay
        self._jobspecs = JobspecReader()
        self.queue: queue.SimpleQueue[tuple[int, str, Any] | None] = queue.SimpleQueue()

    def run(self) -> None:
        try:
            connection = self._relay.instance.connect()
            while (request := self.queue.get()) is not None:
                number, verb, argument = request
                try:
                    failed, answer = 0, json.dumps(self._answer(connection, verb, argument))
                except InstanceLost:
                    raise
                except Exception as error:
                    failed, answer = 1, f"{verb}: {error!r}"
                self._relay.send([(protocol.REPLY, number, failed, answer.encode())])
            connection.close()
        except Exception as error:
            self._relay.end(_describe(error), 1)

    def _answer(self, connection: Connection, verb: str, argument: Any) -> Any:
        if verb == "submit":
            requests = [JobRequest(self._jobspecs.read(packed), urgency) for *packed, urgency in argument]
            answers = connection.submit(requests)
            self._relay.active_jobs.update(a for a in answers if not isinstance(a, Refusal))
            return [answer.reason if isinstance(answer, Refusal) else answer for answer in answers]
        if verb == "cancel":
            return connection.cancel(*argument)
        if verb == "output":
            try:
                part = connection.output(*argument)
                return [part.stdout, part.stderr, part.end]
            except OutputUnavailable as error:
                return str(error)
        if verb == "capacity":
            capacity = connection.capacity()
            return [capacity.nodes, capacity.cores, capacity.gpus]
        if verb == "open":
            self._relay.subscriptions[argument] = subscription = Subscription(self._relay, argument)
            return subscription.source.address.environment
        if verb == "close":
            return self._relay.subscriptions.pop(argument).source.close()
        if verb in self._relay.verbs:
            return self._relay.verbs[verb](connection)
        raise ValueError("no such verb")


class Subscription:
    """Sends the events of one subscription of the executor; a sink of the instance's event source."""

    def __init__(self, relay: BlockRelay, number: int) -> None:
        self._relay = relay
        self._number = number
        self._numbers: dict[PeerId, int] = {}
        self._peers: dict[int, PeerId] = {}
        self.source = subscribe(relay.instance, self, 0)

    def send(self, peer: int, body: bytes) -> None:
        """Send a message to the peer with this number, unless it is lost."""
        if peer in self._peers:
            self.source.send(self._peers[peer], body)

    def push(self, source: EventSource, events: Sequence[Event]) -> None:
        number = self._number
        records: list[protocol.Record] = []
        for event in events:
            if isinstance(event, PeerMessage):
                records.append((protocol.MESSAGE, number, self._peer(event.peer), event.body))
            elif isinstance(event, JobEnded):
                self._relay.active_jobs.discard(event.job_id)
                records.append((protocol.ENDED, number, event.job_id, protocol.encode_result(event.result)))
            elif isinstance(event, PeerLost):
                peer = self._numbers.pop(event.peer)
                del self._peers[peer]
                records.append((protocol.PEER_LOST, number, peer, b""))
            elif isinstance(event, Usage):
                records.append((protocol.USAGE, number, 0, protocol.encode_usage(event)))
        self._relay.send(records)

    def lost(self, source: EventSource, why: str) -> None:
        self._relay.end(why, 1)

    def _peer(self, peer: PeerId) -> int:
        number = self._numbers.get(peer)
        if number is None:
            number = self._numbers[peer] = next(self._relay.peer_numbers)
            self._peers[number] = peer
        return number


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, InstanceError) else f"the relay failed: {error!r}"
