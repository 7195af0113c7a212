"""A block that joined the relay, as an instance: its verbs become records, its records become events.

::

    RelayedInstance
     ├─ RelayedConnection   each verb is a request, and waits for the block's reply
     └─ RelayedCompletion   what the block's completion reports is queued here, by the relay's thread
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from parsl_flux_bulk.blocks import protocol as wire
from parsl_flux_bulk.errors import InstanceError, InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import (
    Capacity,
    ChannelAddress,
    Event,
    JobEnded,
    JobId,
    JobRequest,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
)

REPLY_TIMEOUT = 300.0
"""Seconds that a block that is there may take to answer a request."""

_F58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class RelayedInstance:
    """A block that joined; see :class:`parsl_flux_bulk.instances.base.Instance`. Made by RelayServer.

    Attributes
    ----------
    block_id : str
        As the block was given it.
    host : str
        Where its program runs.
    pid : int
        Of its program.
    initial_capacity : Capacity
        As it was when the block joined.
    environment : dict of str to str
        That of the block's program, so with what the provider's ``worker_init`` set, less what
        concerns that program alone.
    """

    def __init__(self, hello: wire.Hello, send: Callable[[list[wire.Record]], bool]) -> None:
        self.block_id = hello.block_id
        self.host = hello.host
        self.pid = hello.pid
        self.initial_capacity = Capacity(*hello.capacity)
        self.environment = hello.environment
        self.descriptor = -1
        self._description = hello.description
        self._name_of_zero = hello.name_of_zero
        left = hello.seconds_left
        self._ends = None if left is None else time.monotonic() + left
        self._raw_send = send
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._completions: dict[int, RelayedCompletion] = {}
        self._lost = ""
        self.closed = False

    @property
    def description(self) -> str:
        """One line for people."""
        return f"block {self.block_id} on {self.host}, relayed: {self._description}"

    @property
    def lost(self) -> bool:
        """Whether the block is gone, or was told to go."""
        return bool(self._lost)

    def walltime_left(self) -> float | None:
        """Seconds until the block's allocation ends; None if the block does not know."""
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    def start(self) -> None:
        """Do nothing: it runs already.

        Raises
        ------
        InstanceUnavailable
            Not any more.
        """
        if self._lost:
            raise InstanceUnavailable(str(self.error()))

    def connect(self) -> RelayedConnection:
        """Open a connection."""
        self._check()
        return RelayedConnection(self)

    def completion(self) -> RelayedCompletion:
        """Open a completion."""
        completion = RelayedCompletion(self, next(self._numbers))
        with self._lock:
            self._completions[completion.number] = completion
        self.send(wire.OPEN, completion.number)
        return completion

    def job_name(self, job_id: JobId) -> str:
        """The id as people write it, and as the block's own instance does."""
        if self._name_of_zero == "0":
            return str(job_id)
        digits = ""
        while job_id or not digits:
            job_id, digit = divmod(job_id, len(_F58))
            digits = _F58[digit] + digits
        return self._name_of_zero[:-1] + digits

    def close(self) -> None:
        """Tell the block to cancel its jobs and to end; does not wait for that."""
        if self._lost:
            self.closed = True
            return
        self.closed = True
        self._raw_send([(wire.BYE, 0, 0, b"the executor is done with this block")])
        self.lose("it was closed")

    # -- used by the two ends -------------------------------------------------------------------

    def send(self, kind: int, end: int, what: int = 0, body: bytes = b"") -> None:
        """Send a record, from any thread.

        Raises
        ------
        InstanceLost
            The block is gone.
        """
        if self._lost or not self._raw_send([(kind, end, what, body)]):
            raise self.error()

    def request(self, verb: str, argument: Any = None) -> Any:
        """Ask the block for something and wait for its answer.

        Raises
        ------
        InstanceLost
            The block is gone, or does not answer.
        """
        number, reply = next(self._numbers), _Reply()
        with self._lock:
            self._replies[number] = reply
        try:
            self.send(wire.REQUEST, number, 0, json.dumps([verb, argument]).encode())
            answered = reply.there.wait(REPLY_TIMEOUT)
        finally:
            with self._lock:
                del self._replies[number]
        if not answered:
            raise InstanceLost(f"{self.description}: no answer to {verb!r} within {REPLY_TIMEOUT:g} s")
        if reply.lost:
            raise self.error()
        if reply.failed:
            raise InstanceError(f"{self.description}: {verb} failed: {reply.body.decode(errors='replace')}")
        return json.loads(reply.body)

    def forget(self, completion: RelayedCompletion) -> None:
        """Let go of a completion that was closed."""
        with self._lock:
            self._completions.pop(completion.number, None)
        self._raw_send([(wire.CLOSE, completion.number, 0, b"")])

    def error(self) -> InstanceLost:
        """The error to raise now that the block is gone."""
        return InstanceLost(f"{self.description}: {self._lost or 'its connection ended'}")

    def _check(self) -> None:
        if self._lost:
            raise self.error()

    # -- in the server's thread -----------------------------------------------------------------

    def take(self, records: list[wire.Record]) -> str | None:
        """Act on what the block sent; return why it leaves, if it does."""
        events: dict[int, list[Event]] = {}
        leaves = None
        for kind, end, what, body in records:
            if kind == wire.MESSAGE:
                events.setdefault(end, []).append(PeerMessage(what, body))
            elif kind == wire.ENDED:
                events.setdefault(end, []).append(JobEnded(what, wire.decode_result(body)))
            elif kind == wire.PEER_LOST:
                events.setdefault(end, []).append(PeerLost(what))
            elif kind == wire.REPLY:
                reply = self._replies.get(end)
                if reply is not None:
                    reply.set(body, failed=bool(what))
            elif kind == wire.BYE:
                leaves = body.decode(errors="replace")
        for number, list_ in events.items():
            completion = self._completions.get(number)
            if completion is not None:  # else it was closed meanwhile
                completion.put(list_)
        return leaves

    def lose(self, why: str) -> None:
        """End everything that waits for the block; from any thread."""
        with self._lock:
            if not self._lost:
                self._lost = why
            replies, completions = list(self._replies.values()), list(self._completions.values())
        for reply in replies:
            reply.lost = True
            reply.there.set()
        for completion in completions:
            completion.wake()


class _Reply:
    __slots__ = ("body", "failed", "lost", "there")

    def __init__(self) -> None:
        self.there = threading.Event()
        self.body = b""
        self.failed = False
        self.lost = False

    def set(self, body: bytes, *, failed: bool) -> None:
        self.body, self.failed = body, failed
        self.there.set()


class RelayedConnection:
    """Submits and cancels; see :class:`.base.Connection`. May be used by any thread."""

    def __init__(self, instance: RelayedInstance) -> None:
        self._instance = instance

    def submit(self, requests: Sequence[JobRequest]) -> list[JobId | Refusal]:
        """Submit all."""
        if not requests:
            return []
        answers = self._instance.request("submit", [[r.jobspec.data, r.urgency] for r in requests])
        return [Refusal(answer) if isinstance(answer, str) else int(answer) for answer in answers]

    def cancel(self, job_ids: Sequence[JobId], reason: str) -> None:
        """Cancel jobs."""
        self._instance.request("cancel", [list(job_ids), reason])

    def output(self, job_id: JobId) -> tuple[str, str]:
        """Return what the block's instance kept of a job's output."""
        out, err = self._instance.request("output", job_id)
        return out, err

    def capacity(self) -> Capacity:
        """Say what there is in the block."""
        return Capacity(*self._instance.request("capacity"))

    def close(self) -> None:
        """Do nothing: all share the block's."""


class RelayedCompletion:
    """Hears how a block's jobs ended, and from their processes; see :class:`.base.Completion`.

    `watch` and `send` may be called by any thread.

    Attributes
    ----------
    on_events : callable or None
        Called in the server's thread when there are events, for who waits for several at once.
    """

    def __init__(self, instance: RelayedInstance, number: int) -> None:
        self._instance = instance
        self.number = number
        self.on_events: Callable[[], None] | None = None
        self._there = threading.Condition(threading.Lock())
        self._events: list[Event] = []
        self._woken = False
        self._closed = False
        self._address: ChannelAddress | None = None

    def watch(self, job_id: JobId) -> None:
        """Report the end of this job."""
        self._check()
        self._instance.send(wire.WATCH, self.number, job_id)

    def poll(self, timeout: float | None) -> list[Event]:
        """Wait for events; see :meth:`.base.Completion.poll`."""
        instance = self._instance
        with self._there:
            if not (self._events or self._woken or instance.lost or self._closed) and timeout != 0:
                self._there.wait_for(
                    lambda: self._events or self._woken or instance.lost or self._closed, timeout
                )
            self._woken = False
            events, self._events = self._events, []
        if not events:
            self._check()
        return events

    def send(self, peer: PeerId, body: bytes) -> None:
        """Send a message to a peer; see :meth:`.base.Completion.send`."""
        assert isinstance(peer, int)
        if not self._closed:
            with contextlib.suppress(InstanceLost):
                self._instance.send(wire.SEND, self.number, peer, body)

    def channel(self) -> ChannelAddress:
        """Have the block open the channel, and say how to reach it from inside it."""
        self._check()
        if self._address is None:
            self._address = ChannelAddress(self._instance.request("channel", self.number))
        return self._address

    def put(self, events: list[Event]) -> None:
        """Queue events; in the server's thread."""
        with self._there:
            self._events += events
            self._there.notify()
        self._tell()

    def wake(self) -> None:
        """Make `poll` return, from any thread."""
        with self._there:
            self._woken = True
            self._there.notify()
        self._tell()

    def _tell(self) -> None:
        tell = self.on_events
        if tell is not None:
            tell()

    def close(self) -> None:
        """Close."""
        if not self._closed:
            self._closed = True
            self.wake()
            self._instance.forget(self)

    def _check(self) -> None:
        if self._closed:
            raise InstanceLost(f"{self._instance.description}: the completion is closed")
        if self._instance.lost:
            raise self._instance.error()
