"""The program in a block: connects to the executor, and serves it with the instance around the program.

Run by path or with ``-m``, as the initial program of ``flux start``, or on its own::

    flux start python .../parsl_flux_bulk/blocks/block_program.py SETTINGS.json

    Settings ──> instance, prepare_nodes ──> join ──> BlockRelay.run ──> end

With ``FLUX_URI`` in the environment jobs go to that Flux instance, else to an embedded one on this machine.
The program ends with status 0 when the executor says so, and with status 1 when the executor is lost or
cannot be reached, or the instance is lost. It cancels its jobs first; a Flux instance ends with its initial
program.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

if __name__ == "__main__" and not __package__:
    # Run by path: import from the package, not from this directory, whose modules have common names.
    _directory = os.path.dirname(os.path.abspath(__file__))
    if sys.path[:1] == [_directory]:
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(os.path.dirname(_directory)))

import zmq

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.client import BlockEnd, BlockRelay
from parsl_flux_bulk.blocks.relay.join import join
from parsl_flux_bulk.blocks.relay.shared_socket import SocketTransport
from parsl_flux_bulk.errors import InstanceError
from parsl_flux_bulk.instances.factory import choose_instance
from parsl_flux_bulk.jobspec.job_environment import base_environment
from parsl_flux_bulk.protocol import instance_uri

NODE_INIT_TIMEOUT = 300.0
"""Seconds that the command for each node may take."""

STARTED = time.time()


@dataclass(frozen=True)
class Settings:
    """What the executor tells the block's program, as a JSON object in a file. It holds no secret.

    Attributes
    ----------
    addresses : list of str
        Names or addresses of the executor's host; all are tried.
    port : int
    certificates : str
        Directory with ``client.key_secret`` and ``server.key``; only its owner may enter it.
    block_id : str
    walltime : float or None
        Seconds from the start of this program until its allocation ends, at most; Slurm's
        ``SLURM_JOB_END_TIME`` counts without it. The expiration that Flux knows counts in any case.
    unreachable_timeout : float
        Seconds after which a block that cannot reach the executor ends.
    node_init : str
        Shell command to run once on each node before the block joins; "" for none.
    """

    addresses: list[str]
    port: int
    certificates: str
    block_id: str = "0"
    walltime: float | None = None
    unreachable_timeout: float = 90.0
    node_init: str = ""

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Settings:
        """Read the file that the argument names.

        Raises
        ------
        BlockEnd
            The file cannot be used; says why.
        """
        if len(arguments) != 1:
            raise BlockEnd("usage: block_program.py SETTINGS.json", 2)
        try:
            with open(arguments[0]) as file:
                return cls(**json.load(file))
        except (OSError, TypeError, ValueError) as error:
            raise BlockEnd(f"cannot use the settings in {arguments[0]}: {error}", 2) from error


def seconds_left(settings: Settings, environ: Mapping[str, str]) -> float | None:
    """Return the seconds until the allocation ends; None if unknown."""
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
    """Return when the Flux instance's resources expire (RFC 20), in ``time.time()`` seconds; 0 for never."""
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
        The command failed, or did not end in time.
    """
    everywhere = ["flux", "exec", "--rank=all"] if environ.get("FLUX_URI") else []
    try:
        # The command's output goes to this program's stderr.
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


def serve(settings: Settings, environ: Mapping[str, str]) -> BlockEnd:
    """Serve the executor until the block ends; return why."""
    stop: list[Callable[[str, int], None]] = []

    def on_signal(number: int, _frame: object) -> None:
        why = f"it got {signal.Signals(number).name}"
        if not stop:
            raise BlockEnd(why, 1)
        stop[0](why, 1)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    instance = choose_instance(environ.get("FLUX_URI") or "local")
    try:
        instance.start()
        if settings.node_init:
            prepare_nodes(settings.node_init, environ)
        hello = protocol.Hello(
            protocol=protocol.PROTOCOL,
            block_id=settings.block_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            description=instance.description,
            name_of_zero=instance.job_name(0),
            seconds_left=seconds_left(settings, environ),
            environment={**base_environment(environ), "PARSL_WORKER_BLOCK_ID": settings.block_id},
        )
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        joined = join(
            context,
            settings.addresses,
            settings.port,
            settings.certificates,
            hello,
            timeout=settings.unreachable_timeout,
        )
        relay = BlockRelay(instance, SocketTransport(joined))
        stop.append(relay.end)
        end = relay.serve()
        context.destroy()
        return end
    finally:
        instance.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    instance_uri.forget_hidden(os.environ)  # a block that a task launched runs on the task's cores
    try:
        end = serve(Settings.read(sys.argv[1:] if arguments is None else arguments), os.environ)
    except BlockEnd as why:
        end = why
    except InstanceError as error:
        end = BlockEnd(str(error), 1)
    print(f"block: {end}", file=sys.stderr, flush=True)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
