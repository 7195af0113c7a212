"""The executor's end of the relay: one listening socket (ROUTER) and one thread for all blocks.

All traffic is encrypted, and only holders of the client's certificate are heard (CurveZMQ, with
:mod:`parsl.curvezmq`). The certificates are files in a directory that only its owner may enter.

A broken connection is not reopened, because messages in flight would be lost unnoticed: the block is lost, on
both sides at once. TCP bridges short pauses of the network.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import zmq

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.instance import BlockState, RelayedInstance
from parsl_flux_bulk.blocks.relay.shared_socket import SharedSocket
from parsl_flux_bulk.errors import InstanceUnavailable

logger = logging.getLogger(__name__)

PORTS = (55000, 56000)
"""Range of ports, without the last one: HighThroughputExecutor's."""

HEARTBEAT = 5.0
"""Seconds between two heartbeats of a connection that carries nothing else."""

SILENCE = 10.0
"""Seconds without an answer to a heartbeat after which a block counts as lost."""

GOODBYE_TIMEOUT = 5.0
"""Seconds that blocks have to disconnect when the server closes."""


class RelayServer:
    """Listens for blocks, from the constructor on.

    Parameters
    ----------
    certificates : str or os.PathLike
        Directory that :func:`parsl.curvezmq.create_certificates` made.
    on_join : callable
        Called with each block that joins, in the server's thread: it must not wait for the block.
    host : str
        Address of the network interface to listen on; ``*`` is all of them.
    ports : tuple of int
        See `PORTS`.
    heartbeat, silence : float
        Seconds; see `HEARTBEAT` and `SILENCE`. A dead host is noticed after their sum.

    Attributes
    ----------
    port : int

    Raises
    ------
    InstanceUnavailable
        No port is free, or the certificates cannot be used.
    """

    def __init__(
        self,
        certificates: str | os.PathLike[str],
        on_join: Callable[[RelayedInstance], None],
        *,
        host: str = "*",
        ports: tuple[int, int] = PORTS,
        heartbeat: float = HEARTBEAT,
        silence: float = SILENCE,
    ) -> None:
        from parsl.curvezmq import ServerContext

        self._on_join = on_join
        self._pid = os.getpid()
        self._empty = threading.Condition()
        self._blocks: dict[bytes, RelayedInstance] = {}
        self._stop = False
        first, end = ports
        try:
            with contextlib.ExitStack() as stack:
                context = ServerContext(os.fspath(certificates))
                stack.callback(context.destroy, linger=0)
                socket = context.socket(zmq.ROUTER)
                for option, value in (
                    (zmq.ROUTER_MANDATORY, 1),
                    (zmq.HEARTBEAT_IVL, int(heartbeat * 1000)),
                    (zmq.HEARTBEAT_TIMEOUT, int(silence * 1000)),
                    (zmq.HANDSHAKE_IVL, 10_000),
                ):
                    socket.setsockopt(option, value)
                self._socket = SharedSocket(socket)
                stack.callback(self._socket.close)
                self.port = socket.bind_to_random_port(
                    f"tcp://{host}", min_port=first, max_port=end, max_tries=200
                )
                self._resources = stack.pop_all()
        except (OSError, ValueError, zmq.ZMQError, zmq.ZMQBindError) as error:
            raise InstanceUnavailable(
                f"cannot listen for blocks on {host}, ports {first} to {end - 1}, "
                f"with the certificates in {os.fspath(certificates)}: {error}"
            ) from error
        self._thread = threading.Thread(target=self._run, name="flux-bulk-relay", daemon=True)
        self._thread.start()

    @property
    def blocks(self) -> list[RelayedInstance]:
        """Blocks that are connected."""
        with self._empty:
            return list(self._blocks.values())

    def close(self) -> None:
        """Tell all blocks to end, and stop listening; bounded in time; may be called twice."""
        if self._stop or os.getpid() != self._pid:  # A fork does not own the server.
            return
        for block in self.blocks:
            block.close()
        with self._empty:
            self._empty.wait_for(lambda: not self._blocks, GOODBYE_TIMEOUT)
        self._stop = True
        self._socket.wake()
        self._thread.join()
        self._resources.close()

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop:
            self._socket.wait()
            try:
                self._step()
            except Exception:
                logger.exception("relay step failed")
        for block in self.blocks:
            self._remove(block, "the executor was shut down")

    def _step(self) -> None:
        # Asked first and acted on last: by then all that was sent before the end of a connection is received.
        ended = self._socket.disconnected()
        while packets := self._socket.receive():
            for sender, frames in packets:
                try:
                    self._receive(sender, protocol.unpack(frames))
                except Exception as error:
                    logger.error("packet dropped: %r", error)
        self._disconnect(ended)

    def _disconnect(self, descriptors: list[int]) -> None:
        for block in self.blocks:
            if block.descriptor in descriptors:
                self._remove(block, "its connection ended: the block's process or its host died")

    def _receive(self, sender: Any, records: list[protocol.Record]) -> None:
        identity = bytes(sender)
        block = self._blocks.get(identity)
        if block is not None:
            why = block.receive(records)
            if why is not None:
                self._remove(block, why)
            return
        for kind, _end, _what, body in records:
            if kind == protocol.PROBE:
                self._answer(identity, protocol.PROBED)
            elif kind == protocol.HELLO:
                # The descriptor may have been that of a block whose end is not handled yet.
                self._disconnect(self._socket.disconnected())
                self._welcome(identity, sender.get(zmq.SRCFD), json.loads(body))

    def _answer(self, identity: bytes, kind: int, body: bytes = b"") -> None:
        self._socket.send([identity, *protocol.pack([(kind, 0, 0, body)])])

    def _welcome(self, identity: bytes, descriptor: int, fields: dict[str, Any]) -> None:
        version = fields.get("protocol")
        if version != protocol.PROTOCOL or self._stop:
            why = f"the block's version of the protocol is {version}, not {protocol.PROTOCOL}"
            self._answer(identity, protocol.BYE, why.encode())
            return
        socket = self._socket
        block = RelayedInstance(
            protocol.Hello(**fields),
            descriptor,
            lambda records: socket.send([identity, *protocol.pack(records)]),
        )
        with self._empty:
            self._blocks[identity] = block
        self._answer(identity, protocol.WELCOME)
        logger.info("block joined id=%s: %s", block.block_id, block.description)
        try:
            self._on_join(block)
        except Exception:
            logger.exception("on_join callback failed block=%s", block.block_id)

    def _remove(self, block: RelayedInstance, why: str) -> None:
        with self._empty:
            self._blocks = {identity: other for identity, other in self._blocks.items() if other is not block}
            self._empty.notify_all()
        level = logging.WARNING if block.end(BlockState.LOST, why) else logging.INFO
        logger.log(level, "block left id=%s: %s", block.block_id, why)
