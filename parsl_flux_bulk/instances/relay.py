"""Blocks that cannot be reached, and so connect to us: the executor's end.

::

    RelayServer   one listening socket (ROUTER) and one thread, for all blocks
     └─ RelayedInstance   a block that said hello; on_join is told of it
         ├─ RelayedConnection   each verb is a request, and waits for the block's reply
         └─ RelayedCompletion   what the block's completion reports is queued here

The block's end is :mod:`parsl_flux_bulk.block`, what travels is in :mod:`.relay_wire`. All traffic is
encrypted, and only who holds the client's certificate can say anything (CurveZMQ, with Parsl's own
:mod:`parsl.curvezmq`): the certificates travel as files of a directory that only its owner may enter.

A connection that breaks is not mended: what was on its way would be lost without anybody's knowing. The
block is lost then, at once on our side and on its own. A network that merely pauses is TCP's affair.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import zmq

from parsl_flux_bulk.errors import InstanceError, InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances import relay_wire as wire
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

if TYPE_CHECKING:
    from parsl.curvezmq import ServerContext

logger = logging.getLogger(__name__)

PORTS = (55000, 56000)
"""Where a port is chosen from, the last one not included: as HighThroughputExecutor's."""

HEARTBEAT = 5.0
"""Seconds between two heartbeats of a connection on which nothing else travels."""

SILENCE = 10.0
"""Seconds that a heartbeat may stay without an answer; then the block's host is taken for dead."""

REPLY_TIMEOUT = 300.0
"""Seconds that a block that is there may take to answer a request."""

GOODBYE_TIMEOUT = 5.0
"""Seconds that blocks have to take note of the server's end."""

_F58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class RelayServer:
    """Where blocks connect to.

    Parameters
    ----------
    certificates : str or os.PathLike
        Directory that :func:`parsl.curvezmq.create_certificates` made.
    on_join : callable
        Told of each block that joins. It runs in the server's thread: it may open nothing and wait for
        nothing of the block, but hands it on to somebody else.
    on_leave : callable, optional
        Told, in the same thread, of each block that joined and is gone, and why.
    host : str
        Address of the network interface to listen on; ``*`` is all of them, ``127.0.0.1`` only this
        machine's own.
    ports : tuple of int
        The first port to choose from, and the one after the last.
    heartbeat, silence : float
        Seconds; see `HEARTBEAT` and `SILENCE`. A host that died is noticed after their sum.
    """

    def __init__(
        self,
        certificates: str | os.PathLike[str],
        on_join: Callable[[RelayedInstance], None],
        *,
        on_leave: Callable[[RelayedInstance, str], None] | None = None,
        host: str = "*",
        ports: tuple[int, int] = PORTS,
        heartbeat: float = HEARTBEAT,
        silence: float = SILENCE,
    ) -> None:
        self._certificates = certificates
        self._on_join = on_join
        self._on_leave = on_leave
        self._host = host
        self._ports = ports
        self._heartbeat = heartbeat
        self._silence = silence
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._empty = threading.Condition(self._lock)
        self._blocks: dict[bytes, RelayedInstance] = {}
        self._context: ServerContext | None = None
        self._socket: wire.SharedSocket | None = None
        self._thread: threading.Thread | None = None
        self._stop = False
        self.port = 0

    def start(self) -> None:
        """Listen; `port` says where from now on.

        Raises
        ------
        InstanceUnavailable
            There is no free port, or something is wrong with the certificates; says what.
        """
        from parsl.curvezmq import ServerContext

        first, end = self._ports
        try:
            context = self._context = ServerContext(os.fspath(self._certificates))
            socket = context.socket(zmq.ROUTER)
            for option, value in (
                (zmq.ROUTER_MANDATORY, 1),
                (zmq.HEARTBEAT_IVL, int(self._heartbeat * 1000)),
                (zmq.HEARTBEAT_TIMEOUT, int(self._silence * 1000)),
                (zmq.HANDSHAKE_IVL, 10_000),
            ):
                socket.setsockopt(option, value)
            self._socket = wire.SharedSocket(socket)
            self.port = socket.bind_to_random_port(
                f"tcp://{self._host}", min_port=first, max_port=end, max_tries=200
            )
        except (OSError, ValueError, zmq.ZMQError, zmq.ZMQBindError) as error:
            self.close()
            raise InstanceUnavailable(self._why_not(error)) from error
        self._thread = threading.Thread(target=self._run, name="flux-bulk-relay", daemon=True)
        self._thread.start()

    def _why_not(self, error: Exception) -> str:
        first, end = self._ports
        return (
            f"cannot listen for blocks on {self._host}, ports {first} to {end - 1}, "
            f"with the certificates in {os.fspath(self._certificates)}: {error}"
        )

    @property
    def blocks(self) -> list[RelayedInstance]:
        """Those that are there."""
        with self._lock:
            return list(self._blocks.values())

    def close(self) -> None:
        """Tell all blocks to end, and stop listening; bounded in time, twice is fine."""
        if os.getpid() != self._pid:
            return  # a fork of the process that it belongs to
        for block in self.blocks:
            block.close()
        with self._empty:
            self._empty.wait_for(lambda: not self._blocks, GOODBYE_TIMEOUT)
        self._stop = True
        socket, self._socket = self._socket, None
        if self._thread is not None and socket is not None:
            socket.wake()
            self._thread.join()
        if socket is not None:
            socket.close()
        context, self._context = self._context, None
        if context is not None:
            context.destroy(linger=0)

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        socket = self._socket
        assert socket is not None
        while not self._stop:
            socket.wait()
            try:
                self._turn(socket)
            except Exception:
                logger.exception("the relay's thread failed in one turn, and goes on")
        for block in self.blocks:
            self._left(block, "the executor was shut down")

    def _turn(self, socket: wire.SharedSocket) -> None:
        while packets := socket.receive():
            for sender, frames in packets:
                try:
                    self._take(socket, sender, wire.unpack(frames))
                except Exception as error:
                    logger.error("a packet of a block was not understood: %r", error)
        # After the last packet that came over them.
        self._disconnect(socket.disconnected())

    def _disconnect(self, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            for block in self.blocks:
                if block.descriptor == descriptor:
                    self._left(block, "its connection ended: the block's process or its host died")

    def _take(self, socket: wire.SharedSocket, sender: Any, records: list[wire.Record]) -> None:
        identity = bytes(sender)
        block = self._blocks.get(identity)
        if block is not None:
            why = block.take(records)
            if why is not None:
                self._left(block, why)
            return
        for kind, _end, _what, body in records:
            if kind == wire.KNOCK:
                socket.send([identity, *wire.pack([(wire.HERE, 0, 0, b"")])])
            elif kind == wire.HELLO:
                # The descriptor may have been another block's until a moment ago.
                self._disconnect(socket.disconnected())
                self._welcome(socket, identity, sender.get(zmq.SRCFD), wire.Hello(**json.loads(body)))

    def _welcome(
        self, socket: wire.SharedSocket, identity: bytes, descriptor: int, hello: wire.Hello
    ) -> None:
        if hello.protocol != wire.PROTOCOL or self._stop:
            why = f"the block's version of the protocol is {hello.protocol}, not {wire.PROTOCOL}"
            socket.send([identity, *wire.pack([(wire.BYE, 0, 0, why.encode())])])
            return
        block = RelayedInstance(hello, lambda records: socket.send([identity, *wire.pack(records)]))
        block.descriptor = descriptor
        with self._lock:
            self._blocks[identity] = block
        socket.send([identity, *wire.pack([(wire.WELCOME, 0, 0, b"")])])
        logger.info("block %s joined: %s", hello.block_id, block.description)
        try:
            self._on_join(block)
        except Exception:
            logger.exception("what was to take block %s failed", hello.block_id)

    def _left(self, block: RelayedInstance, why: str) -> None:
        with self._empty:
            for identity, other in list(self._blocks.items()):
                if other is block:
                    del self._blocks[identity]
            self._empty.notify_all()
        closed = block.closed
        block.lose(why)
        logger.log(logging.INFO if closed else logging.WARNING, "block %s left: %s", block.block_id, why)
        if self._on_leave is not None:
            try:
                self._on_leave(block, why)
            except Exception:
                logger.exception("what was to hear of the end of block %s failed", block.block_id)


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
        answers = self._instance.request("submit", [list(asdict(request).values()) for request in requests])
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
        """Send a message to a peer."""
        self._check()
        assert isinstance(peer, int)
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
