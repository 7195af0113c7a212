"""A block's own program: connects out to the executor, and relays for it to the instance that it is in.

Run by path or with ``-m``, as the initial program of ``flux start``, or on its own::

    flux start python .../parsl_flux_bulk/blocks/main.py SETTINGS.json

    Settings ──> choose_instance, prepare_nodes ──> join ──> block_relay.Block.run ──> the end

With ``FLUX_URI`` in the environment jobs go to that Flux instance, else this machine itself runs them
(:mod:`.instances.local`). The program ends, with status 0, when the executor says so, and with status 1 when
that is gone, cannot be reached, or the instance is lost; its jobs are cancelled first, and a Flux instance
whose initial program it is ends with it.

The settings are a JSON object in a file that the one argument, or `SETTINGS_VARIABLE`, names; see
:class:`Settings`. There are no secrets in it: those are in the files of the certificates' directory.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket as socket_module
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:
    # Run by path: our package is wanted, and not the modules in it, which have common names.
    _directory = os.path.dirname(os.path.abspath(__file__))
    if sys.path[:1] == [_directory]:
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(os.path.dirname(_directory)))

import zmq

from parsl_flux_bulk.blocks import protocol as wire
from parsl_flux_bulk.blocks.relay_client import Block, BlockEnd
from parsl_flux_bulk.errors import InstanceError
from parsl_flux_bulk.jobspec.job_environment import base_environment

if TYPE_CHECKING:
    from parsl_flux_bulk.instances.base import Instance

SETTINGS_VARIABLE = "PARSL_FLUX_BULK_BLOCK"
"""Environment variable: path of the settings, where there is no argument."""

ID_VARIABLE = "PARSL_FLUX_BULK_BLOCK_ID"
"""Environment variable: the block's id, if several blocks share one file of settings."""

KNOCK_PERIOD = 1.0
"""Seconds between two attempts to hear from the executor at any of its addresses."""

NODE_INIT_TIMEOUT = 300.0
"""Seconds that the command for each node may take."""

END_TIMEOUT = 20.0
"""Seconds that the end may take; then the program is gone in any case."""

STARTED = time.time()
"""When this program began."""


@dataclass(frozen=True)
class Settings:
    """What the executor says to a block before it is there.

    Attributes
    ----------
    addresses : list of str
        Of the executor's host: names or numbers, all of which are tried.
    port : int
    certificates : str
        Directory with ``client.key_secret`` and ``server.key``; nobody else may enter it.
    block_id : str
    walltime : float or None
        Seconds that the block's allocation has from this program's start on, at most; where it is not
        given, Slurm's ``SLURM_JOB_END_TIME`` is asked. What Flux knows of the end counts, too.
    unreachable_timeout : float
        Seconds after which a block that cannot reach the executor ends.
    heartbeat : float
        Seconds between two heartbeats.
    cores : int or None
        Of this machine, where there is no Flux.
    node_init : str
        Shell command to run once on each node before the block joins; "" for none.
    """

    addresses: list[str]
    port: int
    certificates: str
    block_id: str = "0"
    walltime: float | None = None
    unreachable_timeout: float = 90.0
    heartbeat: float = 15.0
    cores: int | None = None
    node_init: str = ""

    @classmethod
    def read(cls, arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
        """Read the file that the argument or the environment names.

        Raises
        ------
        BlockEnd
            It cannot be used; says why.
        """
        path = arguments[0] if len(arguments) == 1 else environ.get(SETTINGS_VARIABLE, "")
        if not path or len(arguments) > 1:
            raise BlockEnd(f"usage: block.py SETTINGS.json (or its path in {SETTINGS_VARIABLE})", 2)
        known = {field.name for field in fields(cls)}
        try:
            with open(path) as file:
                values = json.load(file)
            if ID_VARIABLE in environ:
                values["block_id"] = environ[ID_VARIABLE]
            unknown = sorted(set(values) - known)
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
            return cls(**values)
        except (OSError, TypeError, ValueError) as error:
            raise BlockEnd(f"cannot use the settings in {path}: {error}", 2) from error


def choose_instance(settings: Settings, environ: Mapping[str, str]) -> Instance:
    """The instance that this program runs in, or this machine."""
    if environ.get("FLUX_URI"):
        from parsl_flux_bulk.instances.flux.instance import FluxInstance

        return FluxInstance.attach()
    from parsl_flux_bulk.instances.local.client import LocalInstance

    return LocalInstance(settings.cores)


def seconds_left(settings: Settings, environ: Mapping[str, str]) -> float | None:
    """Seconds until the allocation ends, if that is known."""
    ends = []
    slurm = environ.get("SLURM_JOB_END_TIME", "")
    if settings.walltime is not None:
        ends.append(STARTED + settings.walltime)
    elif slurm.isdecimal():
        ends.append(float(slurm))
    if environ.get("FLUX_URI") and (expiration := _expiration()):
        ends.append(expiration)
    return max(0.0, min(ends) - time.time()) if ends else None


def _expiration() -> float:
    """When the Flux instance's resources expire (RFC 20), in ``time.time()`` seconds; 0 if never."""
    try:
        done = subprocess.run(["flux", "kvs", "get", "resource.R"], capture_output=True, timeout=30)
        return float(json.loads(done.stdout)["execution"].get("expiration", 0))
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        return 0.0


def prepare_nodes(command: str, environ: Mapping[str, str]) -> None:
    """Run a shell command once on each node.

    Raises
    ------
    BlockEnd
        It failed, or did not end in time.
    """
    everywhere = ["flux", "exec", "--rank=all"] if environ.get("FLUX_URI") else []
    try:
        # What it prints goes where our own messages go.
        done = subprocess.run(
            [*everywhere, "bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            timeout=NODE_INIT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BlockEnd(f"node_init: {error}", 1) from error
    if done.returncode:
        raise BlockEnd(f"node_init exited with status {done.returncode}: {command}", 1)


# -- reaching the executor ------------------------------------------------------------------------


def join(context: zmq.Context[zmq.Socket[bytes]], settings: Settings, hello: wire.Hello) -> wire.SharedSocket:
    """Knock at every address until the executor answers at one, and introduce the block there.

    Raises
    ------
    BlockEnd
        Nobody answered in time, or the executor does not want this block.
    """
    deadline = time.monotonic() + settings.unreachable_timeout
    tried = {address: _dial(context, settings, address) for address in settings.addresses}
    chosen = None
    try:
        address, chosen = _knock(tried, deadline, settings)
        chosen.disconnected()  # of earlier attempts
        chosen.send(wire.pack([(wire.HELLO, 0, 0, json.dumps(hello._asdict()).encode())]))
        kind, why = _answer(chosen, deadline)
        if kind != wire.WELCOME:
            raise BlockEnd(f"the executor at {address} port {settings.port} refused this block: {why}", 1)
    except BaseException as error:
        if chosen is not None:
            # It may have let us in already.
            chosen.send(wire.pack([(wire.BYE, 0, 0, str(error).encode())]))
            chosen.close(linger=1.0)
        raise
    finally:
        for socket in tried.values():
            if socket is not chosen:
                socket.close()
    return chosen


def _dial(context: zmq.Context[zmq.Socket[bytes]], settings: Settings, address: str) -> wire.SharedSocket:
    from zmq.auth import load_certificate

    directory = settings.certificates
    try:
        if os.stat(directory).st_mode & 0o077:
            raise OSError("others than its owner may enter the directory: make its mode 0700")
        public, secret = load_certificate(os.path.join(directory, "client.key_secret"))
        server, _ = load_certificate(os.path.join(directory, "server.key"))
        if secret is None:
            raise OSError("client.key_secret holds no secret key")
    except (OSError, ValueError) as error:
        raise BlockEnd(f"cannot use the certificates in {directory}: {error}", 1) from error
    socket = context.socket(zmq.DEALER)
    for option, value in (
        (zmq.CURVE_PUBLICKEY, public),
        (zmq.CURVE_SECRETKEY, secret),
        (zmq.CURVE_SERVERKEY, server),
        (zmq.IPV6, 1),
        (zmq.HEARTBEAT_IVL, max(1, int(min(settings.heartbeat, settings.unreachable_timeout / 3) * 1000))),
        (zmq.HEARTBEAT_TIMEOUT, max(1, int(settings.unreachable_timeout * 1000))),
        (zmq.CONNECT_TIMEOUT, 5000),
        (zmq.RECONNECT_IVL, 100),
        (zmq.RECONNECT_IVL_MAX, 2000),
    ):
        socket.setsockopt(option, value)
    shared = wire.SharedSocket(socket)
    socket.connect(f"tcp://{f'[{address}]' if ':' in address else address}:{settings.port}")
    return shared


def _knock(
    tried: dict[str, wire.SharedSocket], deadline: float, settings: Settings
) -> tuple[str, wire.SharedSocket]:
    poll = select.poll()
    for socket in tried.values():
        for descriptor in socket.descriptors():
            poll.register(descriptor, select.POLLIN)
    knock, next_knock = wire.pack([(wire.KNOCK, 0, 0, b"")]), 0.0
    while (now := time.monotonic()) < deadline:
        if now >= next_knock:
            next_knock = now + KNOCK_PERIOD
            for socket in tried.values():
                socket.send(knock)
        for address, socket in tried.items():
            socket.disconnected()
            if socket.receive():
                return address, socket
        poll.poll(max(0.0, min(next_knock, deadline) - time.monotonic()) * 1000)
    where = ", ".join(tried)
    raise BlockEnd(
        f"no executor answered within {settings.unreachable_timeout:g} s at {where}, port {settings.port}: "
        "it is gone, a firewall is between, or the certificates are not its own",
        1,
    )


def _answer(socket: wire.SharedSocket, deadline: float) -> tuple[int, str]:
    while (now := time.monotonic()) < deadline:
        # One by one: what comes after the welcome is for others to read.
        while packets := socket.receive(limit=1):
            for kind, _end, _what, body in wire.unpack(packets[0][1]):
                if kind != wire.HERE:  # perhaps the answer to a second knock
                    return kind, body.decode(errors="replace")
        if socket.disconnected():
            break
        socket.wait(deadline - now)
    return wire.BYE, "it went away"


# -- the program ------------------------------------------------------------------------------------


def serve(settings: Settings, environ: Mapping[str, str]) -> BlockEnd:
    """Be a block until its end."""
    stopped: list[Callable[[str, int], None]] = []

    def on_signal(number: int, _frame: object) -> None:
        why = f"it got {signal.Signals(number).name}"
        if not stopped:
            raise BlockEnd(why, 1)
        stopped[0](why, 1)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    instance = choose_instance(settings, environ)
    try:
        instance.start()
        if settings.node_init:
            prepare_nodes(settings.node_init, environ)
        connection = instance.connect()
        capacity = connection.capacity()
        connection.close()
        hello = wire.Hello(
            protocol=wire.PROTOCOL,
            block_id=settings.block_id,
            host=socket_module.gethostname(),
            pid=os.getpid(),
            description=instance.description,
            name_of_zero=instance.job_name(0),
            seconds_left=seconds_left(settings, environ),
            capacity=(capacity.nodes, capacity.cores, capacity.gpus),
            environment=base_environment(environ),
        )
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        block = Block(instance, join(context, settings, hello))
        stopped.append(block.end)
        end = block.run()
        # Should anything below not come to its end by itself.
        watchdog = threading.Timer(END_TIMEOUT, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()
        block.close(end)
        context.destroy()
        return end
    finally:
        instance.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    try:
        settings = Settings.read(sys.argv[1:] if arguments is None else arguments, os.environ)
        end = serve(settings, os.environ)
    except BlockEnd as why:
        end = why
    except InstanceError as error:
        end = BlockEnd(str(error), 1)
    print(f"block.py: {end}", file=sys.stderr, flush=True)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
