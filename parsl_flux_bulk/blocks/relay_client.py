"""What a block does from its joining to its end: relays for the executor to an instance.

::

    main thread    Block.run: takes the executor's packets
    desk thread    Desk: submit, cancel, output, capacity, with one connection for all of the executor's
    more threads   Reporter: one for each of the executor's completions

Each thread sends to the executor what it has to say, by itself. What travels is in
:mod:`.instances.relay_wire`; the program around this is :mod:`.block`.
"""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parsl_flux_bulk.blocks import protocol as wire
from parsl_flux_bulk.errors import InstanceError, InstanceLost
from parsl_flux_bulk.instances.base import JobEnded, JobRequest, PeerLost, PeerMessage, Refusal
from parsl_flux_bulk.jobspec.jobspec import Jobspec

if TYPE_CHECKING:
    from parsl_flux_bulk.instances.base import Completion, Connection, Instance, JobId, PeerId

JOIN_TIMEOUT = 15.0
"""Seconds that each thread may take to end."""


class BlockEnd(Exception):
    """Why the block ends.

    Attributes
    ----------
    status : int
        Exit status.
    """

    def __init__(self, why: str, status: int) -> None:
        super().__init__(why)
        self.status = status


class Block:
    """What the threads share.

    Parameters
    ----------
    instance : Instance
        Started.
    socket : SharedSocket
        Joined.
    """

    def __init__(self, instance: Instance, socket: wire.SharedSocket) -> None:
        self.instance = instance
        self._socket = socket
        self._reporters: dict[int, Reporter] = {}
        self._desk = Desk(self)
        self._end: BlockEnd | None = None
        self.active_jobs: set[JobId] = set()
        self.peer_numbers = itertools.count(1)

    def send(self, records: list[wire.Record]) -> None:
        """Send records to the executor; from any thread."""
        self._socket.send(wire.pack(records))

    def end(self, why: str, status: int) -> None:
        """End the block soon; from any thread. The first reason counts."""
        if self._end is None:
            self._end = BlockEnd(why, status)
            self._socket.wake()

    def run(self) -> BlockEnd:
        """Relay until there is a reason to end, and return it."""
        self._desk.start()
        while self._end is None:
            # Asked first and acted on last: what was sent before the connection's end is there by then.
            ended = self._socket.disconnected()
            try:
                while packets := self._socket.receive():
                    for _sender, frames in packets:
                        for kind, end, what, body in wire.unpack(frames):
                            self._take(kind, end, what, body)
            except Exception as error:
                self.end(_lost(error), 1)
            if ended:
                self.end("the connection to the executor ended: it is gone, or was silent for too long", 1)
            if self._end is None:
                self._socket.wait()
        return self._end

    def _take(self, kind: int, end: int, what: int, body: bytes) -> None:
        if kind == wire.SEND or kind == wire.WATCH:
            reporter = self._reporters.get(end)
            if reporter is not None:
                reporter.put((kind, what, body))
        elif kind == wire.REQUEST:
            verb, argument = json.loads(body)
            reporter = self._reporters.get(argument) if verb == "channel" else None
            if reporter is not None:
                reporter.put((kind, end, b""))
            else:
                self._desk.put((end, verb, argument))
        elif kind == wire.OPEN:
            self._reporters[end] = Reporter(self, end)
            self._reporters[end].start()
        elif kind == wire.CLOSE:
            reporter = self._reporters.pop(end, None)
            if reporter is not None:
                reporter.put((kind, 0, b""))
        elif kind == wire.BYE:
            self.end(body.decode(errors="replace"), 0)

    def close(self, why: BlockEnd) -> None:
        """Say goodbye, cancel the jobs, end the threads."""
        if why.status:
            self.send([(wire.BYE, 0, 0, str(why).encode())])
        self._socket.close(linger=1.0)
        for reporter in self._reporters.values():
            reporter.put((wire.CLOSE, 0, b""))
        if self.active_jobs:
            self._desk.put((0, "cancel", [list(self.active_jobs), f"the block ends: {why}"]))
        self._desk.put(None)
        for thread in (self._desk, *self._reporters.values()):
            thread.join(JOIN_TIMEOUT)


class Desk(threading.Thread):
    """Answers requests, one after the other."""

    def __init__(self, block: Block) -> None:
        super().__init__(name="block-desk", daemon=True)
        self._block = block
        self._inbox: queue.SimpleQueue[tuple[int, str, Any] | None] = queue.SimpleQueue()

    def put(self, request: tuple[int, str, Any] | None) -> None:
        """Hand over a request (its number, verb and argument), or None for the end."""
        self._inbox.put(request)

    def run(self) -> None:
        """Answer until the end."""
        try:
            connection = self._block.instance.connect()
            while (request := self._inbox.get()) is not None:
                number, verb, argument = request
                try:
                    answer = self._answer(connection, verb, argument)
                except InstanceLost:
                    raise
                except Exception as error:
                    self._block.send([(wire.REPLY, number, 1, repr(error).encode())])
                else:
                    self._block.send([(wire.REPLY, number, 0, json.dumps(answer).encode())])
            connection.close()
        except Exception as error:
            self._block.end(_lost(error), 1)

    def _answer(self, connection: Connection, verb: str, argument: Any) -> Any:
        if verb == "submit":
            answers = connection.submit([JobRequest(Jobspec(data), urgency) for data, urgency in argument])
            self._block.active_jobs.update(a for a in answers if not isinstance(a, Refusal))
            return [answer.reason if isinstance(answer, Refusal) else answer for answer in answers]
        if verb == "cancel":
            return connection.cancel(*argument)
        if verb == "output":
            return connection.output(argument)
        if verb == "capacity":
            capacity = connection.capacity()
            return [capacity.nodes, capacity.cores, capacity.gpus]
        raise ValueError(f"no such verb: {verb!r}")


class Reporter(threading.Thread):
    """Serves one of the executor's completions with one of the instance's."""

    def __init__(self, block: Block, number: int) -> None:
        super().__init__(name=f"block-completion-{number}", daemon=True)
        self._block = block
        self._number = number
        self._inbox: deque[tuple[int, int, bytes]] = deque()
        self._completion: Completion | None = None
        self._awake = True
        self._numbers: dict[PeerId, int] = {}
        self._peers: dict[int, PeerId] = {}

    def put(self, order: tuple[int, int, bytes]) -> None:
        """Hand over what the executor wants of the completion; from the main thread."""
        self._inbox.append(order)
        if not self._awake:
            self._awake = True
            completion = self._completion
            if completion is not None:
                completion.wake()

    def run(self) -> None:
        """Carry out orders and report events until it is closed."""
        try:
            completion = self._completion = self._block.instance.completion()
            try:
                while self._carry_out(completion):
                    self._awake = False
                    # Whatever came before this point is seen; what comes later wakes.
                    events = completion.poll(0 if self._inbox else None)
                    self._awake = True
                    if events:
                        self._block.send(self._records(events))
            finally:
                self._awake = True
                completion.close()
        except Exception as error:
            self._block.end(_lost(error), 1)

    def _carry_out(self, completion: Completion) -> bool:
        while self._inbox:
            kind, what, body = self._inbox.popleft()
            if kind == wire.SEND:
                if what in self._peers:
                    completion.send(self._peers[what], body)
            elif kind == wire.WATCH:
                completion.watch(what)
            elif kind == wire.REQUEST:
                environment = completion.channel().environment
                self._block.send([(wire.REPLY, what, 0, json.dumps(environment).encode())])
            else:
                return False
        return True

    def _records(self, events: Sequence[object]) -> list[wire.Record]:
        records: list[wire.Record] = []
        number = self._number
        for event in events:
            if isinstance(event, PeerMessage):
                records.append((wire.MESSAGE, number, self._peer(event.peer), event.body))
            elif isinstance(event, JobEnded):
                self._block.active_jobs.discard(event.job_id)
                records.append((wire.ENDED, number, event.job_id, wire.encode_result(event.result)))
            elif isinstance(event, PeerLost):
                peer = self._numbers.pop(event.peer)
                del self._peers[peer]
                records.append((wire.PEER_LOST, number, peer, b""))
        return records

    def _peer(self, peer: PeerId) -> int:
        number = self._numbers.get(peer)
        if number is None:
            number = self._numbers[peer] = next(self._block.peer_numbers)
            self._peers[number] = peer
        return number


def _lost(error: Exception) -> str:
    return str(error) if isinstance(error, InstanceError) else f"the relay failed: {error!r}"
