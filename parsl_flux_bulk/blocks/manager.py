"""Blocks: instances that a Parsl provider launches, and that join by themselves.

::

    provider ── launch command ──> blocks/block_program.py (in the allocation) ── connects out ──> RelayServer
                                                                                              │
                                                                 Federation <── add, remove <─┘

The launch command holds no secret. A block joins when the batch system has started it, and is then a member
of the federation that the executor's pipeline submits to. Nothing listens on the block's side, and ssh is not
needed; ``docs/blocks.md`` says why.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parsl_flux_bulk.blocks.relay.instance import RelayedInstance
from parsl_flux_bulk.blocks.relay.server import RelayServer
from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.instances.federation.members import Member, MemberState
from parsl_flux_bulk.providers import OncePerBlock

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT = 120.0
"""Seconds until a block that is scaled in ends although it has jobs."""

DRAIN_PERIOD = 2.0
"""Seconds between two calls of `drain` for such a block: a job may have been on its way there."""

_BLOCK_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "block_program.py")


@dataclass(frozen=True, slots=True)
class BlockSettings:
    """Settings that all blocks of an executor share.

    Attributes
    ----------
    directory : str
        For the certificates and settings; on a file system that the blocks share.
    python : str
    addresses : list of str
        Addresses of this host that the blocks try.
    listen : str
        Address of the network interface to listen on; ``*`` is all.
    launch : str
        Command that starts a Flux instance, before the block's program; "" for none.
    once : bool
        The provider itself starts Flux: the program runs once a block.
    walltime : float or None
        Seconds that a block lives, if the provider has a limit.
    node_init : str
        Shell command to run once on each node, before the block joins.
    unreachable_timeout : float
        Seconds after which a block that cannot reach the executor ends. With the heartbeat's time before
        that, and the block's own end, less than two minutes pass.
    """

    directory: str
    python: str
    addresses: list[str]
    listen: str = "*"
    launch: str = "flux start"
    once: bool = False
    walltime: float | None = None
    node_init: str = ""
    unreachable_timeout: float = 75.0


class Blocks:
    """The blocks of one executor; listens for them from the constructor on.

    A block is known here from when its program joins; the state of the federation's member is then its state.

    Parameters
    ----------
    settings : BlockSettings
    federation : Federation
    drain : callable
        Called with a function that tells whether a job is in a given block: such jobs must get no more tasks.

    Attributes
    ----------
    node_size : tuple of int or None
        Cores and GPUs of a node of the block that joined last; None before the first.

    Raises
    ------
    InstanceUnavailable
        Says why it cannot listen.
    """

    def __init__(
        self,
        settings: BlockSettings,
        federation: Federation,
        *,
        drain: Callable[[Callable[[JobId], bool]], None],
    ) -> None:
        from parsl.curvezmq import create_certificates

        self._settings = settings
        self._federation = federation
        self._drain = drain
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._times: dict[str, dict[str, float]] = {}
        self._joined: set[str] = set()
        self.node_size: tuple[int, int] | None = None
        self._threads: list[threading.Thread] = []
        self._certificates = os.fspath(create_certificates(settings.directory))
        self._server = RelayServer(self._certificates, self._join, host=settings.listen)

    def command(self, block_id: str) -> str:
        """Return the command line with which a Parsl provider launches a block."""
        settings = self._settings
        self._times[block_id] = {"launched": time.time()}
        path = os.path.join(self._certificates, f"block-{block_id}.json")
        with open(path, "w") as file:
            json.dump(
                {
                    "addresses": settings.addresses,
                    "port": self._server.port,
                    "certificates": self._certificates,
                    "block_id": block_id,
                    "walltime": settings.walltime,
                    "node_init": settings.node_init,
                    "unreachable_timeout": settings.unreachable_timeout,
                },
                file,
            )
        # Without quotes and variables: Parsl's launchers pass the line through one more shell.
        program = shlex.join([settings.python, _BLOCK_PROGRAM, path])
        if settings.once:
            return OncePerBlock(program)
        return f"{settings.launch} {program}".strip()

    # -- state ----------------------------------------------------------------------------------

    def joined(self, block_id: str) -> bool:
        """Whether a block has ever joined."""
        return block_id in self._joined

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the state of each block that was launched, and since when; any thread may call this.

        Returns
        -------
        dict of str to dict
            With ``state`` (launched, joined or ended) and the times ``launched`` and ``joined`` in seconds
            since the epoch; of a block that joined, with ``nodes``, ``cores`` and ``gpus``.
        """
        found: dict[str, dict[str, Any]] = {}
        for block_id, times in list(self._times.items()):
            member = self._members.get(block_id)
            state = "launched"
            more: dict[str, Any] = {}
            if member is not None:
                state = "ended" if member.state is MemberState.REMOVED else "joined"
                capacity = member.capacity
                more = {"nodes": capacity.nodes, "cores": capacity.cores, "gpus": capacity.gpus}
            found[block_id] = {"state": state, **times, **more}
        return found

    def idle_time(self, block_id: str) -> float:
        """Return the seconds since a block had a job: infinite before it joined, 0 while it has one."""
        member = self._members.get(block_id)
        if member is None:
            return float("inf")
        return 0.0 if member.jobs else time.monotonic() - member.idle_since

    @property
    def all_joined(self) -> frozenset[str]:
        """All blocks that have ever joined."""
        with self._lock:
            return frozenset(self._joined)

    # -- scale-in -------------------------------------------------------------------------------

    def retire(self, block_id: str, then: Callable[[], Any]) -> None:
        """End a block when its jobs have ended, and call `then`; returns at once."""
        member = self._members.get(block_id)
        if member is None or not member.jobs:
            self._remove(block_id)
            then()
            return
        self._federation.registry.drain(member)
        self._start_thread(f"block-{block_id}-drain", self._drain_and_remove, block_id, member, then)

    def hold(self, block_id: str) -> None:
        """Give a block that has joined no more jobs and tasks; returns at once."""
        member = self._members.get(block_id)
        if member is not None:
            self._federation.registry.drain(member)
            self._start_thread(f"block-{block_id}-hold", self._keep_draining, member, math.inf)

    def _drain_and_remove(self, block_id: str, member: Member, then: Callable[[], Any]) -> None:
        if not self._keep_draining(member, DRAIN_TIMEOUT):
            logger.warning("block drain timeout id=%s jobs=%d: they end", block_id, len(member.jobs))
        self._remove(block_id)
        then()

    def _keep_draining(self, member: Member, timeout: float) -> bool:
        """Drain a member's jobs until it has none; return whether it has none before the timeout."""
        deadline = time.monotonic() + timeout
        self._drain(member.has_job)
        while not self._federation.registry.wait_empty(member, DRAIN_PERIOD):
            if time.monotonic() > deadline:
                return False
            self._drain(member.has_job)
        return True

    def _remove(self, block_id: str) -> None:
        member = self._members.get(block_id)
        if member is not None:
            self._federation.registry.remove(member, "it was scaled in")

    def close(self) -> None:
        """End all blocks, and stop listening; bounded in time; may be called twice."""
        for block_id in list(self._members):
            self._remove(block_id)
        self._server.close()
        for thread in self._threads:
            thread.join(5.0)

    def _start_thread(self, name: str, target: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()]
        self._threads.append(thread)
        thread.start()

    # -- in the relay's thread --------------------------------------------------------------------

    def _join(self, block: RelayedInstance) -> None:
        with self._lock:
            twice = block.block_id in self._joined
            self._joined.add(block.block_id)
        if twice:
            logger.error(
                "block refused id=%s: a second program of the same block has come, from %s: its nodes have "
                "not become one Flux instance. The launcher must give Flux a PMI, such as "
                "SrunLauncher(overrides='--mpi=pmi2'); see docs/blocks.md",
                block.block_id,
                block.host,
            )
            block.close()
            return
        # `add` waits for replies, which come through the relay's thread.
        self._start_thread(f"block-{block.block_id}-join", self._add, block)

    def _add(self, block: RelayedInstance) -> None:
        try:
            member = self._federation.add(
                block.block_id, block, ends_at=block.ends_at, environment=block.environment
            )
        except Exception as error:
            logger.error("block not usable id=%s: %s", block.block_id, error)
            return
        self._times[block.block_id]["joined"] = time.time()
        self._members[block.block_id] = member
        nodes, cores, gpus = member.capacity.nodes, member.capacity.cores, member.capacity.gpus
        if nodes:
            self.node_size = max(1, cores // nodes), gpus // nodes


def addresses_of_this_host() -> list[str]:
    """Return the IPv4 addresses of this host's network interfaces, without loopback if there are others.

    Parsl's ``get_all_addresses`` also asks a web service, which takes 30 s without internet access, and
    returns an address that compute nodes can seldom reach.
    """
    import psutil  # type: ignore[import-untyped]

    found = [
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family is socket.AF_INET
    ]
    return [address for address in found if not address.startswith("127.")] or found
