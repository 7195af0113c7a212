"""The block's end of the relay: serves the executor with the instance in the block, until the block ends.

::

    main thread           BlockRelay.run: receives the executor's packets
    RequestThread         submit, cancel, output, capacity, over one connection to the instance
    SubscriptionThread    one for each subscription of the executor, in a completion of the instance

Each thread sends its own records to the executor.
"""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.shared_socket import SharedSocket
from parsl_flux_bulk.errors import InstanceError, InstanceLost
from parsl_flux_bulk.instances.base import (
    Completion,
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
)
from parsl_flux_bulk.jobspec.jobspec import Jobspec

JOIN_TIMEOUT = 15.0
"""Seconds that each thread may take to end."""


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


class BlockRelay:
    """What the threads share.

    Parameters
    ----------
    instance : Instance
        Started.
    socket : SharedSocket
        Joined.
    """

    def __init__(self, instance: Instance, socket: SharedSocket) -> None:
        self.instance = instance
        self.active_jobs: set[JobId] = set()
        self.peer_numbers = itertools.count(1)
        self._socket = socket
        self._subscriptions: dict[int, SubscriptionThread] = {}
        self._requests = RequestThread(self)
        self._end: BlockEnd | None = None

    def send(self, records: list[protocol.Record]) -> None:
        """Send records to the executor; from any thread."""
        self._socket.send(protocol.pack(records))

    def end(self, why: str, status: int) -> None:
        """End the block soon; from any thread. The first reason counts."""
        if self._end is None:
            self._end = BlockEnd(why, status)
            self._socket.wake()

    def run(self) -> BlockEnd:
        """Relay until there is a reason to end, and return it."""
        self._requests.start()
        while self._end is None:
            # Asked first and acted on last: by then all that was sent before the end is received.
            ended = self._socket.disconnected()
            try:
                while packets := self._socket.receive():
                    for _sender, frames in packets:
                        for record in protocol.unpack(frames):
                            self._receive(*record)
            except Exception as error:
                self.end(_describe(error), 1)
            if ended:
                self.end("the connection to the executor ended: it is gone, or was silent for too long", 1)
            if self._end is None:
                self._socket.wait()
        return self._end

    def _receive(self, kind: int, end: int, what: int, body: bytes) -> None:
        if kind == protocol.SEND or kind == protocol.WATCH:
            if end in self._subscriptions:
                self._subscriptions[end].put((kind, what, body))
        elif kind == protocol.REQUEST:
            verb, argument = json.loads(body)
            if verb == "channel" and argument in self._subscriptions:
                self._subscriptions[argument].put((kind, end, b""))
            else:
                self._requests.queue.put((end, verb, argument))
        elif kind == protocol.OPEN:
            self._subscriptions[end] = SubscriptionThread(self, end)
            self._subscriptions[end].start()
        elif kind == protocol.CLOSE:
            if end in self._subscriptions:
                self._subscriptions.pop(end).put((kind, 0, b""))
        elif kind == protocol.BYE:
            self.end(body.decode(errors="replace"), 0)

    def close(self, why: BlockEnd) -> None:
        """Tell the executor, cancel the jobs, and end the threads."""
        if why.status:
            self.send([(protocol.BYE, 0, 0, str(why).encode())])
        self._socket.close(linger=1.0)
        for subscription in self._subscriptions.values():
            subscription.put((protocol.CLOSE, 0, b""))
        if self.active_jobs:
            self._requests.queue.put((0, "cancel", [list(self.active_jobs), f"the block ends: {why}"]))
        self._requests.queue.put(None)
        for thread in (self._requests, *self._subscriptions.values()):
            thread.join(JOIN_TIMEOUT)


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
            answers = connection.submit([JobRequest(Jobspec(data), urgency) for data, urgency in argument])
            self._relay.active_jobs.update(a for a in answers if not isinstance(a, Refusal))
            return [answer.reason if isinstance(answer, Refusal) else answer for answer in answers]
        if verb == "cancel":
            return connection.cancel(*argument)
        if verb == "output":
            return connection.output(argument)
        if verb == "capacity":
            capacity = connection.capacity()
            return [capacity.nodes, capacity.cores, capacity.gpus]
        raise ValueError("no such verb")


class SubscriptionThread(threading.Thread):
    """Serves one subscription of the executor in a completion of the instance."""

    def __init__(self, relay: BlockRelay, number: int) -> None:
        super().__init__(name=f"block-completion-{number}", daemon=True)
        self._relay = relay
        self._number = number
        self._commands: deque[tuple[int, int, bytes]] = deque()
        self._completion: Completion | None = None
        self._awake = True
        self._numbers: dict[PeerId, int] = {}
        self._peers: dict[int, PeerId] = {}

    def put(self, command: tuple[int, int, bytes]) -> None:
        """Hand over a command of the executor (kind, what, body); from the main thread."""
        self._commands.append(command)
        if not self._awake:
            self._awake = True
            completion = self._completion
            if completion is not None:
                completion.wake()

    def run(self) -> None:
        try:
            completion = self._completion = self._relay.instance.completion()
            try:
                while self._run_commands(completion):
                    self._awake = False
                    # A command that came before this line is seen here; a later one wakes the completion.
                    events = completion.poll(0 if self._commands else None)
                    self._awake = True
                    if events:
                        self._relay.send([record for event in events for record in self._records(event)])
            finally:
                self._awake = True
                completion.close()
        except Exception as error:
            self._relay.end(_describe(error), 1)

    def _run_commands(self, completion: Completion) -> bool:
        """Run all commands; return False after CLOSE."""
        while self._commands:
            kind, what, body = self._commands.popleft()
            if kind == protocol.SEND:
                if what in self._peers:
                    completion.send(self._peers[what], body)
            elif kind == protocol.WATCH:
                completion.watch(what)
            elif kind == protocol.REQUEST:
                environment = completion.channel().environment
                self._relay.send([(protocol.REPLY, what, 0, json.dumps(environment).encode())])
            else:
                return False
        return True

    def _records(self, event: Event) -> Sequence[protocol.Record]:
        if isinstance(event, PeerMessage):
            return [(protocol.MESSAGE, self._number, self._peer(event.peer), event.body)]
        if isinstance(event, JobEnded):
            self._relay.active_jobs.discard(event.job_id)
            result = protocol.encode_result(event.result)
            return [(protocol.ENDED, self._number, event.job_id, result)]
        if isinstance(event, PeerLost):
            peer = self._numbers.pop(event.peer)
            del self._peers[peer]
            return [(protocol.PEER_LOST, self._number, peer, b"")]
        return []

    def _peer(self, peer: PeerId) -> int:
        number = self._numbers.get(peer)
        if number is None:
            number = self._numbers[peer] = next(self._relay.peer_numbers)
            self._peers[number] = peer
        return number


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, InstanceError) else f"the relay failed: {error!r}"
