"""The launcher of node jobs: submits them where cores are free, and relays to their programs.

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
from typing import cast

from parsl_flux_bulk.blocks.packed.packing import UNKNOWN, Packing, node_job_sizes
from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.instance import BlockState, RelayedInstance
from parsl_flux_bulk.errors import InstanceError
from parsl_flux_bulk.instances.base import (
    EMBEDDED_IN_FLIGHT,
    Completion,
    PeerId,
    PeerMessage,
    Usage,
)
from parsl_flux_bulk.instances.events import MemberInstance
from parsl_flux_bulk.instances.federation.inner_instance_launcher import (
    PING_PERIOD,
    PING_TIMEOUT,
    START_TIMEOUT,
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

IDLE_TIMEOUT = 2.0
"""Seconds without a job after which a node job ends, and gives its cores back."""

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
    """Starts node jobs where cores are free, and ends those that are idle.

    Parameters
    ----------
    outer, add, registry
        See :class:`.Launcher`.
    packing : Packing
        What is known of the jobs.

    Attributes
    ----------
    ends_idle : bool
        Whether idle node jobs end; False for tests of one node job.
    """

    NOUN = "node job"

    ends_idle = True

    def __init__(
        self,
        outer: FluxInstance,
        add: Callable[[str, MemberInstance], Member],
        registry: MemberRegistry,
        packing: Packing = UNKNOWN,
    ) -> None:
        super().__init__(outer, add, registry)
        self._packing = packing
        self._cores_needed = packing.cores_needed
        self._links: dict[PeerId, RelayedInstance] = {}
        self._idle: dict[Member, float] = {}  # until when it may stay idle
        self._wanted: list[threading.Event] = []
        self._launches: list[threading.Event] = []
        self._starting_until = time.monotonic() + START_TIMEOUT
        self.joined = 0

    def launch(self, timeout: float, cores_needed: int | None) -> None:
        """Start node jobs where cores are free, and wait until each is ready or has failed; from any thread.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most.
        cores_needed : int or None
            Cores to take at most; None for all that are free.
        """
        settled = threading.Event()
        self._call(lambda _: self._want(settled, cores_needed))
        if self.is_alive():
            settled.wait(timeout)

    def idle(self, member: Member) -> None:
        """Note that a node job has no jobs left; from any thread."""
        self._call(lambda _: self._note_idle(member))

    def run(self) -> None:
        try:
            super().run()
        finally:
            for settled in [*self._wanted, *self._launches]:
                settled.set()

    def _needed(self) -> bool:
        return True  # node jobs may be wanted later

    def _step(self, completion: Completion, timeout: float | None) -> None:
        self._run_calls(completion)
        # Not before those that end have given their cores back, and those that wait have got theirs.
        if self._wanted and not self._in_state(InnerState.RETIRING, InnerState.SUBMITTED):
            self._launches += self._wanted
            self._wanted.clear()
            self._submit(completion)
            self._starting_until = time.monotonic() + START_TIMEOUT
        if self._launches and not self._in_state(InnerState.SUBMITTED):
            for settled in self._launches:
                settled.set()
            self._launches.clear()
        self._end_idle()
        if self._idle:
            left = max(0.0, min(self._idle.values()) - time.monotonic())
            timeout = left if timeout is None else min(left, timeout)
        super()._step(completion, timeout)

    def _want(self, settled: threading.Event, cores_needed: int | None) -> None:
        self._wanted.append(settled)
        self._cores_needed = cores_needed

    def _note_idle(self, member: Member) -> None:
        if self.ends_idle:
            self._idle[member] = time.monotonic() + IDLE_TIMEOUT

    def _end_idle(self) -> None:
        now = time.monotonic()
        if self._in_state(InnerState.SUBMITTED) and now < self._starting_until:
            # Jobs come when all are ready.
            self._idle = dict.fromkeys(self._idle, now + IDLE_TIMEOUT)
        for member in [member for member, until in self._idle.items() if until <= now]:
            del self._idle[member]
            threading.Thread(target=self._end_without_output, args=[member], daemon=True).start()

    def _end_without_output(self, member: Member) -> None:
        """Have a member end, unless it keeps output that somebody may ask for. Waits for replies."""
        kept = 0
        if self._packing.keeps_output:
            try:
                kept = cast("RelayedInstance", member.instance).request("kept")
            except InstanceError:
                return
        if not kept:
            self._registry.drain_idle(member)  # it is told to end once it is drained

    def _jobspecs(self, completion: Completion, first: int) -> list[Jobspec]:
        environment = completion.channel().environment
        sizes = node_job_sizes(self._free(completion), self._packing, self._cores_needed)
        return [_jobspec(cores, gpus, token, environment) for token, (cores, gpus) in enumerate(sizes, first)]

    def _free(self, completion: Completion) -> tuple[tuple[int, int], ...]:
        """Return the free cores and GPUs of each node."""
        completion.survey()
        deadline = time.monotonic() + SURVEY_TIMEOUT
        while (left := deadline - time.monotonic()) > 0:
            free = None
            for event in completion.poll(left):
                if isinstance(event, Usage):
                    free = event.free
                else:
                    self._act_on(completion, event)
            if free is not None:
                return free
        logger.warning("the instance did not say what is free timeout=%gs", SURVEY_TIMEOUT)
        return ()

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
        self.joined += 1
        if inner.state is InnerState.SUBMITTED:
            inner.move_to(InnerState.READY)
            self._note_idle(member)

    def _on_peer_lost(self, peer: PeerId) -> None:
        relayed = self._links.pop(peer, None)
        for inner in self._in_state(InnerState.READY):
            if inner.peer == peer:
                inner.move_to(InnerState.RETIRING)  # its job is about to end, too
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
