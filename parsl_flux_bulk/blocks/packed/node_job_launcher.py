"""The launcher of node jobs: submits one for the free cores of each node, and relays to their programs.

::

    outer instance ── node job: node_job.py ── HELLO, over the channel ──> RelayedInstance, Federation.add
                                            <── records in both directions ──>
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.instance import BlockState, RelayedInstance
from parsl_flux_bulk.errors import InstanceError
from parsl_flux_bulk.instances.base import EMBEDDED_IN_FLIGHT, Completion, PeerId, PeerMessage, Usage
from parsl_flux_bulk.instances.events import MemberInstance
from parsl_flux_bulk.instances.federation.inner_instance_launcher import (
    PING_PERIOD,
    PING_TIMEOUT,
    Inner,
    InnerState,
    Launcher,
)
from parsl_flux_bulk.instances.federation.members import Member
from parsl_flux_bulk.instances.federation.registry import MemberRegistry
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.job_environment import base_environment
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.protocol import frames, variables

logger = logging.getLogger(__name__)

SURVEY_TIMEOUT = 10.0
"""Seconds that the instance may take to say what is free."""

_PROGRAM = str(Path(__file__).resolve().parent / "node_job.py")


class Link:
    """The connection to the program of a node job."""

    def __init__(self, peer: PeerId, call: Callable[[Callable[[Completion], None]], None]) -> None:
        self._peer = peer
        self._call = call
        self._lock = threading.Lock()
        self._unsent: list[protocol.Record] = []

    def send(self, records: list[protocol.Record]) -> bool:
        """Send records soon, together with those of other threads; from any thread."""
        with self._lock:
            idle = not self._unsent
            self._unsent += records
        if idle:
            self._call(self._flush)
        return True

    def _flush(self, completion: Completion) -> None:
        with self._lock:
            records, self._unsent = self._unsent, []
        if records:
            completion.send(self._peer, protocol.pack_message(records))


class NodeJobLauncher(Launcher):
    """Starts and ends node jobs."""

    NOUN = "node job"

    def __init__(
        self, outer: FluxInstance, add: Callable[[str, MemberInstance], Member], registry: MemberRegistry
    ) -> None:
        super().__init__(outer, add, registry)
        self._links: dict[PeerId, RelayedInstance] = {}

    def _jobspecs(self, completion: Completion) -> list[Jobspec]:
        environment = completion.channel().environment
        return [
            _jobspec(cores, gpus, token, environment)
            # Large ones first: a small one would also fit their nodes.
            for token, (cores, gpus) in enumerate(sorted(_free(completion), reverse=True))
            if cores
        ]

    def _on_message(self, completion: Completion, message: PeerMessage) -> None:
        relayed = self._links.get(message.peer)
        records = [(kind, end, what, bytes(body)) for kind, end, what, body in frames.decode(message.body)]
        if relayed is None:
            self._on_hello(message.peer, records[0])
            del records[0]
            relayed = self._links.get(message.peer)
        if relayed is not None and (why := relayed.receive(records)) is not None:
            relayed.end(BlockState.LOST, why)

    def _on_hello(self, peer: PeerId, record: protocol.Record) -> None:
        _, _, token, payload = record
        inner = self._inner.get(token)
        if inner is None or inner.state is not InnerState.SUBMITTED:
            return  # It has ended or was canceled meanwhile.
        inner.peer = peer
        about = frames.decode_json(payload)
        hello = protocol.Hello(
            protocol=protocol.PROTOCOL, block_id=inner.name, host=about["host"], pid=about["pid"],
            description="", name_of_zero="0", seconds_left=None, environment={},
        )  # fmt: skip
        relayed = self._links[peer] = RelayedInstance(hello, -1, Link(peer, self._call).send)
        relayed.in_flight = EMBEDDED_IN_FLIGHT
        relayed.description = f"embedded instance on {hello.host}"
        # In a thread of its own, because it waits for replies, which this thread receives.
        threading.Thread(target=self._join, args=(inner, relayed), name="node-job-joins", daemon=True).start()

    def _join(self, inner: Inner, relayed: RelayedInstance) -> None:
        try:
            member = self._add(inner.name, relayed)
        except InstanceError as error:
            logger.warning("node job not usable job=%s: %s", inner.name, error)
            relayed.close()
            return
        self._call(lambda _: self._joined(inner, member))

    def _joined(self, inner: Inner, member: Member) -> None:
        inner.member = member
        if inner.state is InnerState.SUBMITTED:
            inner.move_to(InnerState.READY)

    def _on_peer_lost(self, peer: PeerId) -> None:
        relayed = self._links.pop(peer, None)
        if relayed is not None:
            relayed.end(BlockState.LOST, "its program has ended")

    def _end_all(self, completion: Completion) -> None:
        for inner in self._in_state(InnerState.READY):
            self._retire(completion, inner.name)
        self._cancel(self._in_state(InnerState.SUBMITTED))
        # Not waited for: the programs have no jobs left, and end with this channel at the latest.

    def _tell_to_end(self, completion: Completion, inner: Inner) -> None:
        completion.send(
            inner.peer, protocol.pack_message([(protocol.BYE, 0, 0, b"it is not needed any more")])
        )


def _free(completion: Completion) -> tuple[tuple[int, int], ...]:
    """Return the free cores and GPUs of each node."""
    completion.survey()
    deadline = time.monotonic() + SURVEY_TIMEOUT
    while (left := deadline - time.monotonic()) > 0:
        for event in completion.poll(left):
            if isinstance(event, Usage):
                return event.free
    logger.warning("the instance did not say what is free timeout=%gs", SURVEY_TIMEOUT)
    return ()


def _jobspec(cores: int, gpus: int, token: int, channel: Mapping[str, str]) -> Jobspec:
    request = {"num_nodes": 1, "num_tasks": 1, "cores_per_task": cores, "gpus_per_task": gpus}
    return build(
        Resources.from_specification(request),
        [sys.executable, _PROGRAM],
        environment=base_environment(os.environ),
        cwd=os.getcwd(),
        name="bulksubmit",
        shell_options={"mpi": "none"},
        own_environment={
            **channel,
            variables.TOKEN: str(token),
            variables.CORES: str(cores),
            variables.GPUS: str(gpus),
            variables.PING: str(PING_PERIOD),
            variables.PING_TIMEOUT: str(PING_TIMEOUT),
        },
    )
