"""The launcher of node jobs: submits them where cores are free, and relays to their programs.

::

    outer instance ── node job: node_job.py ── HELLO, over the channel ──> RelayedInstance, Federation.add
                                            <── records in both directions ──>
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import cast

from parsl_flux_bulk.blocks.packed.node_jobs import Link, NodeJob, NodeJobState, node_job_jobspec
from parsl_flux_bulk.blocks.packed.packing import UNKNOWN, Packing, node_job_sizes
from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.instance import BlockState, RelayedInstance
from parsl_flux_bulk.errors import InstanceError, InstanceLost
from parsl_flux_bulk.instances.base import (
    EMBEDDED_IN_FLIGHT,
    Completion,
    Event,
    JobEnded,
    JobId,
    JobRequest,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
    Usage,
)
from parsl_flux_bulk.instances.call_queue import CallQueue
from parsl_flux_bulk.instances.federation.members import Member
from parsl_flux_bulk.instances.federation.registry import MemberRegistry
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.protocol import frames

logger = logging.getLogger(__name__)

START_TIMEOUT = 30.0
"""Seconds that jobs wait for node jobs that start; later ones are used when they are ready."""

QUEUE_TIMEOUT = 1.0
"""Seconds that jobs wait for node jobs that wait for cores. A node job starts in some 0.3 s."""

STOP_TIMEOUT = 30.0
"""Seconds that `stop` waits for the thread."""

IDLE_TIMEOUT = 2.0
"""Seconds without a job after which a node job ends, and gives its cores back."""

SURVEY_TIMEOUT = 10.0
"""Seconds that the instance may take to say what is free."""


class NodeJobLauncher(threading.Thread):
    """Starts node jobs where cores are free, and ends those that are idle.

    Parameters
    ----------
    outer : FluxInstance
    add : callable
        Adds a ready node job to the federation by its name.
    registry : MemberRegistry
        From which ended ones are removed.
    packing : Packing
        What is known of the jobs.

    Attributes
    ----------
    ends_idle : bool
        Whether idle node jobs end; False for tests of one node job.
    joined : int
        Node jobs that have been ready.
    queued : bool
        Whether node jobs wait for cores.
    """

    ends_idle = True

    def __init__(
        self,
        outer: FluxInstance,
        add: Callable[[str, RelayedInstance], Member],
        registry: MemberRegistry,
        packing: Packing = UNKNOWN,
    ) -> None:
        super().__init__(name="flux-bulk-node-jobs", daemon=True)
        self._outer = outer
        self._add = add
        self._registry = registry
        self._packing = packing
        self._calls: CallQueue[Completion] = CallQueue()
        self._node_jobs: dict[int, NodeJob] = {}
        self._next_token = 0
        self._links: dict[PeerId, RelayedInstance] = {}
        self._idle: dict[Member, float] = {}  # until when it may stay idle
        self._cores_needed: int | None = None
        self._wanted = False
        self._waiters: list[threading.Event] = []
        self._next_survey = 0.0
        self._starting_until = 0.0
        self._stopping = False
        self._first = threading.Event()
        self._submitted = threading.Event()
        self.joined = 0
        self.queued = False

    def start(self) -> None:
        """Start the thread, and submit node jobs for the first jobs."""
        super().start()
        self._first = self._ask(self._packing.cores_needed)
        self._submitted.wait(START_TIMEOUT)

    def wait(self) -> None:
        """Wait until the first node jobs are ready; see `launch`."""
        self._wait_for(self._first, START_TIMEOUT)

    def launch(self, timeout: float, cores_needed: int | None) -> None:
        """Start node jobs where cores are free, and wait until each is ready or has failed; from any thread.

        If the instance has no cores for those that are not ready, the waiting ends after `QUEUE_TIMEOUT`.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most.
        cores_needed : int or None
            Cores to take at most; None for all that are free.
        """
        self._wait_for(self._ask(cores_needed), timeout)

    def _ask(self, cores_needed: int | None) -> threading.Event:
        ended = threading.Event()
        self._calls.put(lambda _: self._want(ended, cores_needed))
        return ended

    def _wait_for(self, ended: threading.Event, timeout: float) -> None:
        if self.is_alive() and not ended.wait(timeout) and timeout:
            logger.warning("node jobs late timeout=%gs: continuing without them", timeout)

    def cancel_late(self) -> None:
        """Cancel those that are not ready; returns at once."""
        self._calls.put(lambda _: self._cancel_submitted())

    def retire(self, name: str) -> None:
        """End a node job that has no jobs; returns at once. Without effect for one that is not ready."""
        self._calls.put(lambda completion: self._retire(completion, name))

    def idle(self, member: Member) -> None:
        """Note that a node job has no jobs left; from any thread."""
        self._calls.put(lambda _: self._note_idle(member))

    def stop(self) -> None:
        """End all node jobs, and the thread; bounded in time."""
        self._stopping = True
        self.cancel_late()
        if self.is_alive():
            self.join(STOP_TIMEOUT)

    # -- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            completion = self._outer.completion()
            try:
                while not self._stopping:
                    self._step(completion)
                for node_job in self._in_state(NodeJobState.READY):
                    self._retire(completion, node_job.name)
                self._cancel_submitted()
                # Not waited for: the programs have no jobs left, and end with this channel at the latest.
            finally:
                completion.close()
        except InstanceLost as error:
            logger.error("node jobs lost: %s", error)
        except Exception:
            logger.exception("thread failed name=%s", self.name)
        finally:
            self._submitted.set()
            self._end_waiting()

    def _step(self, completion: Completion) -> None:
        self._calls.run(completion)
        # Not before those that end have given their cores back, and those that wait have got theirs.
        if self._wanted and not self._in_state(NodeJobState.RETIRING, NodeJobState.SUBMITTED):
            self._wanted = False
            self._submit(completion)
            self._submitted.set()
        self.queued = self.queued and bool(self._in_state(NodeJobState.SUBMITTED))
        if self._waiters:
            self._check_waiting(completion)
        self._end_idle()
        due = [*self._idle.values(), *([self._next_survey] if self._waiters else [])]
        until = min(due, default=None)
        for event in self._calls.poll(
            completion, lambda: None if until is None else max(0.0, until - time.monotonic())
        ):
            self._act_on(event)

    def _act_on(self, event: Event) -> None:
        if isinstance(event, PeerMessage):
            self._on_message(event)
        elif isinstance(event, PeerLost):
            self._on_peer_lost(event.peer)
        elif isinstance(event, JobEnded):
            self._on_ended(event)
        elif isinstance(event, Usage):
            self._on_waiting(event.waiting)

    # -- starting ---------------------------------------------------------------------------------

    def _want(self, ended: threading.Event, cores_needed: int | None) -> None:
        self._wanted = True
        self._waiters.append(ended)
        self._cores_needed = cores_needed

    def _submit(self, completion: Completion) -> None:
        environment = completion.channel().environment
        sizes = node_job_sizes(self._free(completion), self._packing, self._cores_needed)
        first = self._next_token
        self._next_token += len(sizes)
        requests = [
            JobRequest(node_job_jobspec(cores, gpus, token, environment))
            for token, (cores, gpus) in enumerate(sizes, first)
        ]
        # Not guarded: node jobs notice the end of this process, and then have time to end their jobs.
        connection = self._outer.connect(guarded=False)
        try:
            answers = connection.submit(requests)
        finally:
            connection.close()
        for token, answer in enumerate(answers, first):
            if isinstance(answer, Refusal):
                logger.warning("node job refused: %s", answer.reason)
            else:
                self._node_jobs[token] = NodeJob(answer, self._outer.job_name(answer))
                completion.watch(answer)
        self._next_survey = time.monotonic() + QUEUE_TIMEOUT
        self._starting_until = time.monotonic() + START_TIMEOUT

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
                    self._act_on(event)
            if free is not None:
                return free
        logger.warning("the instance did not say what is free timeout=%gs", SURVEY_TIMEOUT)
        return ()

    def _check_waiting(self, completion: Completion) -> None:
        """End the waiting if all are ready or have failed; else ask whether the others wait for cores."""
        if not self._wanted and not self._in_state(NodeJobState.SUBMITTED):
            self._end_waiting()
        elif self._next_survey <= time.monotonic():
            self._next_survey = time.monotonic() + QUEUE_TIMEOUT
            completion.survey()

    def _on_waiting(self, waiting: Collection[JobId]) -> None:
        submitted = self._in_state(NodeJobState.SUBMITTED)
        if submitted and all(node_job.job_id in waiting for node_job in submitted):
            self.queued = True
            self._end_waiting()

    def _end_waiting(self) -> None:
        for ended in self._waiters:
            ended.set()
        self._waiters.clear()

    # -- idle ones --------------------------------------------------------------------------------

    def _note_idle(self, member: Member) -> None:
        if self.ends_idle:
            self._idle[member] = time.monotonic() + IDLE_TIMEOUT

    def _end_idle(self) -> None:
        now = time.monotonic()
        if self._waiters and now < self._starting_until:
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

    # -- programs ---------------------------------------------------------------------------------

    def _on_message(self, message: PeerMessage) -> None:
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
        node_job = self._node_jobs.get(token)
        if node_job is None or node_job.state is not NodeJobState.SUBMITTED:
            return  # It has ended or was canceled meanwhile.
        node_job.peer = peer
        about = frames.decode_json(payload)
        hello = protocol.Hello(
            protocol=protocol.PROTOCOL, block_id=node_job.name, host=about["host"], pid=about["pid"],
            description="", name_of_zero="0", seconds_left=None, environment={},
        )  # fmt: skip
        relayed = self._links[peer] = RelayedInstance(hello, -1, Link(peer, self._calls.put).send)
        relayed.in_flight = EMBEDDED_IN_FLIGHT
        relayed.description = f"embedded instance on {hello.host}"
        # In a thread of its own, because it waits for replies, which this thread receives.
        threading.Thread(
            target=self._join, args=(node_job, relayed), name="node-job-joins", daemon=True
        ).start()

    def _join(self, node_job: NodeJob, relayed: RelayedInstance) -> None:
        try:
            member = self._add(node_job.name, relayed)
        except InstanceError as error:
            logger.warning("node job not usable job=%s: %s", node_job.name, error)
            relayed.close()
            return
        self._calls.put(lambda _: self._joined(node_job, member))

    def _joined(self, node_job: NodeJob, member: Member) -> None:
        node_job.member = member
        self.joined += 1
        if node_job.state is NodeJobState.SUBMITTED:
            node_job.move_to(NodeJobState.READY)
            self._note_idle(member)

    def _on_peer_lost(self, peer: PeerId) -> None:
        relayed = self._links.pop(peer, None)
        for node_job in self._in_state(NodeJobState.READY):
            if node_job.peer == peer:
                node_job.move_to(NodeJobState.RETIRING)  # its job is about to end, too
        if relayed is not None:
            relayed.end(BlockState.LOST, "its program has ended")

    # -- ends -------------------------------------------------------------------------------------

    def _on_ended(self, event: JobEnded) -> None:
        token = next(token for token, node_job in self._node_jobs.items() if node_job.job_id == event.job_id)
        node_job = self._node_jobs.pop(token)
        result = event.result
        why = result.stderr or result.note or result.status.value
        if not result.ok and node_job.state is not NodeJobState.CANCELED:
            logger.warning("node job ended job=%s: %s", node_job.name, why)
        if node_job.member is not None:
            # Not by its connection alone: a broken one to another node may stay silent.
            self._registry.remove(node_job.member, why)

    def _in_state(self, *states: NodeJobState) -> list[NodeJob]:
        return [node_job for node_job in self._node_jobs.values() if node_job.state in states]

    def _retire(self, completion: Completion, name: str) -> None:
        for node_job in self._in_state(NodeJobState.READY):
            if node_job.name == name:
                node_job.move_to(NodeJobState.RETIRING)
                bye = (protocol.BYE, 0, 0, b"it is not needed any more")
                completion.send(node_job.peer, protocol.pack_message([bye]))

    def _cancel_submitted(self) -> None:
        job_ids = []
        for node_job in self._in_state(NodeJobState.SUBMITTED):
            node_job.move_to(NodeJobState.CANCELED)
            job_ids.append(node_job.job_id)
        if job_ids:
            connection = self._outer.connect()
            connection.cancel(job_ids, "it is not needed any more")
            connection.close()
