"""Connect a block's program to the executor: probe all its addresses, and introduce the block at one."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Sequence

import zmq
import zmq.auth

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.client import BlockEnd
from parsl_flux_bulk.blocks.relay.shared_socket import SharedSocket

HEARTBEAT = 15.0
"""Seconds between two heartbeats of a connection that carries nothing else."""

PROBE_PERIOD = 1.0
"""Seconds between two probes of all addresses."""


def join(
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Sequence[str],
    port: int,
    certificates: str,
    hello: protocol.Hello,
    timeout: float,
) -> SharedSocket:
    """Probe every address until the executor answers at one, and introduce the block there.

    Parameters
    ----------
    timeout : float
        Seconds to wait for an answer; later, seconds of silence after which the connection ends.

    Raises
    ------
    BlockEnd
        There was no answer in time, or the executor refused the block.
    """
    deadline = time.monotonic() + timeout
    sockets = {}
    joined = None
    try:
        for address in addresses:
            socket = _socket(context, certificates, min(HEARTBEAT, timeout / 3), timeout)
            sockets[address] = SharedSocket(socket)
            socket.connect(f"tcp://{f'[{address}]' if ':' in address else address}:{port}")
        answered = _probe(sockets, deadline)
        if answered is None:
            raise BlockEnd(
                f"no executor answered within {timeout:g} s at {', '.join(addresses)}, port {port}: it has "
                "ended, a firewall is between, or the certificates are not its own",
                1,
            )
        joined = sockets.pop(answered)
        joined.disconnected()  # Forget failed attempts to connect.
        joined.send(protocol.pack([(protocol.HELLO, 0, 0, json.dumps(hello._asdict()).encode())]))
        refusal = _wait_welcome(joined, deadline)
        if refusal is not None:
            raise BlockEnd(f"the executor at {answered} port {port} refused this block: {refusal}", 1)
        return joined
    except BaseException as error:
        if joined is not None:
            # The executor may have admitted the block already.
            joined.send(protocol.pack([(protocol.BYE, 0, 0, str(error).encode())]))
            joined.close(linger=1.0)
        raise
    finally:
        for unused in sockets.values():
            unused.close()


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], certificates: str, heartbeat: float, timeout: float
) -> zmq.Socket[bytes]:
    try:
        if os.stat(certificates).st_mode & 0o077:
            raise OSError("others than its owner may enter the directory: make its mode 0700")
        public, secret = zmq.auth.load_certificate(os.path.join(certificates, "client.key_secret"))
        server, _ = zmq.auth.load_certificate(os.path.join(certificates, "server.key"))
        if secret is None:
            raise OSError("client.key_secret holds no secret key")
    except (OSError, ValueError) as error:
        raise BlockEnd(f"cannot use the certificates in {certificates}: {error}", 1) from error
    socket = context.socket(zmq.DEALER)
    for option, value in (
        (zmq.CURVE_PUBLICKEY, public),
        (zmq.CURVE_SECRETKEY, secret),
        (zmq.CURVE_SERVERKEY, server),
        (zmq.IPV6, 1),
        (zmq.HEARTBEAT_IVL, max(1, int(heartbeat * 1000))),
        (zmq.HEARTBEAT_TIMEOUT, max(1, int(timeout * 1000))),
        (zmq.CONNECT_TIMEOUT, 5000),
        (zmq.RECONNECT_IVL, 100),
        (zmq.RECONNECT_IVL_MAX, 2000),
    ):
        socket.setsockopt(option, value)
    return socket


def _probe(sockets: dict[str, SharedSocket], deadline: float) -> str | None:
    """Return the first address that answers; None after the deadline."""
    poll = select.poll()
    for socket in sockets.values():
        for descriptor in socket.descriptors():
            poll.register(descriptor, select.POLLIN)
    probe, next_probe = protocol.pack([(protocol.PROBE, 0, 0, b"")]), 0.0
    while (now := time.monotonic()) < deadline:
        if now >= next_probe:
            next_probe = now + PROBE_PERIOD
            for socket in sockets.values():
                socket.send(probe)
        for address, socket in sockets.items():
            socket.disconnected()
            if socket.receive():
                return address
        poll.poll(max(0.0, min(next_probe, deadline) - time.monotonic()) * 1000)
    return None


def _wait_welcome(socket: SharedSocket, deadline: float) -> str | None:
    """Wait for the answer to HELLO; return why the executor refused, None if it did not."""
    while (now := time.monotonic()) < deadline:
        # One message at a time: those after WELCOME are for BlockRelay.
        while packets := socket.receive(limit=1):
            for kind, _end, _what, body in protocol.unpack(packets[0][1]):
                if kind != protocol.PROBED:  # There may be an answer to a second probe.
                    return None if kind == protocol.WELCOME else body.decode(errors="replace")
        if socket.disconnected():
            break
        socket.wait(deadline - now)
    return "the connection ended"
