"""Blocks that cannot be reached, and so connect to us: the executor's end.

::

    RelayServer   one listening socket (ROUTER) and one thread, for all blocks
     └─ RelayedInstance   a block that said hello; on_join is told of it; see :mod:`.relayed`

The block's end is :mod:`parsl_flux_bulk.blocks.main`; what travels is in :mod:`.relay_wire`. All traffic is
encrypted, and only who holds the client's certificate can say anything (CurveZMQ, with Parsl's own
:mod:`parsl.curvezmq`): the certificates travel as files of a directory that only its owner may enter.

A connection that breaks is not mended: what was on its way would be lost without anybody's knowing. The
block is lost then, at once on our side and on its own. A network that merely pauses is TCP's affair.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from parsl_flux_bulk.blocks import protocol as wire
from parsl_flux_bulk.blocks.relayed_instance import RelayedInstance
from parsl_flux_bulk.errors import InstanceUnavailable

if TYPE_CHECKING:
    from parsl.curvezmq import ServerContext

__all__ = ["RelayServer", "RelayedInstance"]

logger = logging.getLogger(__name__)

PORTS = (55000, 56000)
"""Where a port is chosen from, the last one not included: as HighThroughputExecutor's."""

HEARTBEAT = 5.0
"""Seconds between two heartbeats of a connection on which nothing else travels."""

SILENCE = 10.0
"""Seconds that a heartbeat may stay without an answer; then the block's host is taken for dead."""

GOODBYE_TIMEOUT = 5.0
"""Seconds that blocks have to take note of the server's end."""


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
        # Asked first and acted on last: what was sent over a connection before its end is there by then.
        ended = socket.disconnected()
        while packets := socket.receive():
            for sender, frames in packets:
                try:
                    self._take(socket, sender, wire.unpack(frames))
                except Exception as error:
                    logger.error("a packet of a block was not understood: %r", error)
        self._disconnect(ended)

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
