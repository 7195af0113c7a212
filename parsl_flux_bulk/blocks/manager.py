"""Blocks: instances that a Parsl provider launches, and that join by themselves.

::

    provider ── launch command ──> block.py (in the allocation) ── connects out ──> RelayServer
                                                                                        │
                                                           Federation <── add, remove ──┘

A block is asked for with a command line that holds no secret, and joins whenever the batch system lets
it; from then on it is a member of the federation that the executor's pipeline runs jobs on. Nothing of
ours listens on the block's side, and no ssh is needed; why that way was taken is in ``docs/blocks.md``.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parsl_flux_bulk.blocks.relay_server import RelayedInstance, RelayServer
from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.instances.federation.members import Member
from parsl_flux_bulk.providers import OncePerBlock

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT = 120.0
"""Seconds that a block that is scaled in may take to end what it runs."""

DRAIN_PERIOD = 2.0
"""Seconds after which its jobs are told to end once more: one may have been on its way to it."""

_BLOCK_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "main.py")


@dataclass(frozen=True, slots=True)
class BlockSettings:
    """What all blocks of an executor have in common.

    Attributes
    ----------
    directory : str
        For the certificates and settings; on a file system that the blocks share.
    python : str
    addresses : list of str
        Of this host, as the blocks may try them.
    listen : str
        Network interface to listen on; ``*`` is all.
    launch : str
        What starts a Flux instance, before the block's program; "" where the block needs none.
    once : bool
        The provider has started Flux already: the program runs once a block.
    walltime : float or None
        Seconds that a block lives, if the provider says so.
    node_init : str
        Shell command that runs once on each node, before there are workers.
    unreachable_timeout : float
        Seconds after which a block that cannot reach us ends; until that is noticed, a heartbeat's
        time passes as well, and then the block has to end: all in all less than two minutes.
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
    """The blocks of one executor.

    Parameters
    ----------
    drain : callable
        Called with a function that tells whether a job is one of a block's: those are to get no
        more tasks.
    """

    def __init__(
        self,
        settings: BlockSettings,
        federation: Federation,
        *,
        drain: Callable[[Callable[[JobId], bool]], None],
    ) -> None:
        self._settings = settings
        self._federation = federation
        self._drain = drain
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._joined: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._server: RelayServer | None = None
        self._certificates = ""

    def start(self) -> None:
        """Listen for blocks.

        Raises
        ------
        InstanceUnavailable
            Says why we cannot.
        """
        from parsl.curvezmq import create_certificates

        self._certificates = os.fspath(create_certificates(self._settings.directory))
        server = RelayServer(self._certificates, self._join, host=self._settings.listen)
        server.start()
        self._server = server

    def command(self, block_id: str) -> str:
        """The command line that makes a block, for a Parsl provider."""
        assert self._server is not None
        settings = self._settings
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
        # Plain words only: Parsl's launchers put them through a shell once more.
        program = shlex.join([settings.python, _BLOCK_PROGRAM, path])
        if settings.once:
            return OncePerBlock(program)
        return f"{settings.launch} {program}".strip()

    # -- how they stand -------------------------------------------------------------------------

    def joined(self, block_id: str) -> bool:
        """Whether a block has ever joined."""
        return block_id in self._joined

    def idle_time(self, block_id: str) -> float:
        """Seconds since a block had a job; infinite for one that has not joined, 0 for a busy one."""
        member = self._members.get(block_id)
        if member is None:
            return float("inf")
        return 0.0 if member.jobs else time.monotonic() - member.idle_since

    @property
    def slots_per_node(self) -> int | None:
        """Cores of a node, by what has joined; None if nothing has."""
        for member in self._federation.members:
            if member.capacity.nodes:
                return max(1, member.capacity.cores // member.capacity.nodes)
        return None

    # -- their end ------------------------------------------------------------------------------

    def retire(self, block_id: str, then: Callable[[], Any]) -> None:
        """End a block once what runs there has ended, and call `then`; returns at once."""
        member = self._members.get(block_id)
        if member is None or not member.jobs:
            self._let_go(block_id)
            then()
            return
        self._federation.close_member(member)
        thread = threading.Thread(
            target=self._drain_and_end,
            args=(block_id, member, then),
            name=f"block-{block_id}-drain",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()

    def _drain_and_end(self, block_id: str, member: Member, then: Callable[[], Any]) -> None:
        deadline = time.monotonic() + DRAIN_TIMEOUT
        self._drain(member.has_job)
        while not self._federation.wait_empty(member, DRAIN_PERIOD):
            if time.monotonic() > deadline:
                logger.warning(
                    "block %s still has jobs after %g s: they end with it", block_id, DRAIN_TIMEOUT
                )
                break
            self._drain(member.has_job)
        self._let_go(block_id)
        then()

    def _let_go(self, block_id: str) -> None:
        member = self._members.get(block_id)
        if member is not None:
            self._federation.remove(member, "it was scaled in")

    def close(self) -> None:
        """End all blocks that are there, and listen no more; bounded in time."""
        for block_id in list(self._members):
            self._let_go(block_id)
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for thread in self._threads:
            thread.join(5.0)

    # -- in the relay's thread --------------------------------------------------------------------

    def _join(self, block: RelayedInstance) -> None:
        with self._lock:
            twice = block.block_id in self._joined
            self._joined.add(block.block_id)
        if twice:
            logger.error(
                "block %s: a second program of the same block has come, from %s: its nodes have not become "
                "one Flux instance. The launcher must give Flux a PMI, such as "
                "SrunLauncher(overrides='--mpi=pmi2'); see docs/blocks.md",
                block.block_id,
                block.host,
            )
            block.close()
            return
        # Opening it takes answers that come through the thread that we are in.
        thread = threading.Thread(
            target=self._add, args=(block,), name=f"block-{block.block_id}-join", daemon=True
        )
        self._threads = [other for other in self._threads if other.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _add(self, block: RelayedInstance) -> None:
        left = block.walltime_left()
        try:
            self._members[block.block_id] = self._federation.add(
                block.block_id,
                block,
                ends_at=None if left is None else time.time() + left,
                environment=block.environment,
            )
        except Exception as error:
            logger.error("block %s joined, and was lost at once: %s", block.block_id, error)


def seconds_of(walltime: str | None) -> float | None:
    """Read a Parsl provider's walltime, ``[DD:]HH:MM:SS`` or ``MM``; None if it is none."""
    if not walltime:
        return None
    try:
        numbers = [int(part) for part in walltime.replace("-", ":").split(":")]
    except ValueError:
        return None
    if len(numbers) == 1:
        return numbers[0] * 60.0
    seconds = 0
    for number, weight in zip(reversed(numbers), (1, 60, 3600, 86400), strict=False):
        seconds += number * weight
    return float(seconds)


def addresses_of_this_host() -> list[str]:
    """Numbers under which others may know this host: those of its network interfaces (IPv4).

    Nobody is asked: Parsl's ``get_all_addresses`` also asks a web service how it sees us, which takes
    30 s where there is no way out, and gives an address that compute nodes seldom reach.
    """
    import psutil  # type: ignore[import-untyped]

    found = [
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family is socket.AF_INET
    ]
    others = [address for address in found if not address.startswith("127.")]
    return others or found
