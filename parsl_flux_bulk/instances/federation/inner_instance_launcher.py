"""The launcher of inner instances: submits them as jobs of the outer instance, and follows their lives.

::

    outer instance ── job: `flux start` ──> worker/inner_instance.py: HELLO with its URI, over the channel
                                                   │
                        attach, Federation.add <───┘

The state of an inner instance or a node job (any other transition raises IllegalTransition)::

    SUBMITTED ──> READY ──> RETIRING      RETIRING: it was told to end
        └───────────┴──────────┴──> CANCELED      and from any state it leaves the table when its job ends
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import (
    Completion,
    Event,
    Instance,
    JobEnded,
    JobId,
    JobRequest,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
    Usage,
)
from parsl_flux_bulk.instances.events import MemberInstance
from parsl_flux_bulk.instances.federation.members import Member
from parsl_flux_bulk.instances.federation.registry import MemberRegistry
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.instances.flux.own_broker import broker_environment
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.protocol import frames, variables
from parsl_flux_bulk.protocol.states import State, Stateful

logger = logging.getLogger(__name__)

START_TIMEOUT = 30.0
"""Seconds that `start` waits for the inner instances; later ones are used when they are ready."""

STOP_TIMEOUT = 15.0
"""Seconds until inner instances that were told to end are canceled."""

PING_PERIOD = 2.0
"""Seconds within which an inner instance notices the end of this process."""

PING_TIMEOUT = 86400.0
"""Seconds for which this process may not answer, stopped by Ctrl-Z for example."""

_KEPT_FINISHED_JOBS = 1000
"""Inactive jobs that an inner instance keeps, and with them their output."""

_HERE = Path(__file__).resolve().parent
_PROGRAM = str(_HERE.parents[1] / "worker" / "main.py")
_MODPROBE = str(_HERE / "modprobe")


class InnerState(State):
    """See the module."""

    SUBMITTED = "submitted", "ready", "canceled"
    READY = "ready", "retiring", "canceled"
    RETIRING = "retiring", "canceled"
    CANCELED = ("canceled",)


@dataclass(slots=True)
class Inner(Stateful):
    """A member, from the submission of its job to its end."""

    job_id: JobId
    name: str
    state: State = InnerState.SUBMITTED
    peer: PeerId = None
    member: Member | None = None


class Launcher(threading.Thread):
    """Starts and ends members of a federation that are jobs of the outer instance.

    Subclasses say what these jobs are, how each joins the federation, and how one is told to end.

    Parameters
    ----------
    outer : FluxInstance
        Started.
    add : callable
        Adds a ready instance to the federation by its name.
    registry : MemberRegistry
        From which ended ones are removed.
    """

    NOUN = "inner instance"
    """What a member is called in the log."""

    def __init__(
        self, outer: FluxInstance, add: Callable[[str, MemberInstance], Member], registry: MemberRegistry
    ) -> None:
        super().__init__(name="flux-bulk-nested", daemon=True)
        self._outer = outer
        self._add = add
        self._registry = registry
        self._completion: Completion | None = None
        self._settled = threading.Event()
        self._calls: deque[Callable[[Completion], None]] = deque()
        self._inner: dict[int, Inner] = {}
        self._next_token = 0
        self._stopping = False

    def start(self) -> None:
        """Start the thread, and wait up to `START_TIMEOUT` until each instance is ready, or has failed.

        Once one is ready, `_others_wait` may end the waiting.
        """
        super().start()
        if not self._settled.wait(START_TIMEOUT):
            logger.warning("%ss late timeout=%gs: continuing without them", self.NOUN, START_TIMEOUT)

    def cancel_late(self) -> None:
        """Cancel those that are not ready; returns at once."""
        self._call(lambda _: self._cancel(self._in_state(InnerState.SUBMITTED)))

    def retire(self, name: str) -> None:
        """End an instance that has no jobs; returns at once. Without effect for one that is not ready."""
        self._call(lambda completion: self._retire(completion, name))

    def stop(self) -> None:
        """End all instances, and the thread; bounded in time."""
        self._stopping = True
        self.cancel_late()
        self.join(2 * STOP_TIMEOUT)

    def _call(self, function: Callable[[Completion], None]) -> None:
        self._calls.append(function)
        completion = self._completion
        if completion is not None:
            completion.wake()

    # -- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._completion = completion = self._outer.completion()
            try:
                self._submit(completion)
                while self._needed() and not self._stopping:
                    self._step(completion, None)
                self._end_all(completion)
            finally:
                self._completion = None
                completion.close()
        except InstanceLost as error:
            logger.error("%ss lost: %s", self.NOUN, error)
        except Exception:
            logger.exception("thread failed name=%s", self.name)
        finally:
            self._settled.set()

    def _submit(self, completion: Completion) -> None:
        first = self._next_token
        requests = [JobRequest(jobspec) for jobspec in self._jobspecs(completion, first)]
        self._next_token += len(requests)
        # Not guarded: inner instances notice the end of this process, and then have time to end their jobs.
        connection = self._outer.connect(guarded=False)
        try:
            answers = connection.submit(requests)
        finally:
            connection.close()
        for token, answer in enumerate(answers, first):
            if isinstance(answer, Refusal):
                logger.warning("%s refused: %s", self.NOUN, answer.reason)
            else:
                self._inner[token] = Inner(answer, self._outer.job_name(answer))
                completion.watch(answer)

    def _step(self, completion: Completion, timeout: float | None) -> None:
        self._run_calls(completion)
        if not self._in_state(InnerState.SUBMITTED) or self._others_wait():
            self._settled.set()
        for event in completion.poll(timeout):
            self._act_on(completion, event)

    def _run_calls(self, completion: Completion) -> None:
        while self._calls:
            self._calls.popleft()(completion)

    def _act_on(self, completion: Completion, event: Event) -> None:
        if isinstance(event, PeerMessage):
            self._on_message(completion, event)
        elif isinstance(event, PeerLost):
            self._on_peer_lost(event.peer)
        elif isinstance(event, JobEnded):
            self._on_ended(event)

    # -- for subclasses ---------------------------------------------------------------------------

    def _others_wait(self) -> bool:
        """Tell whether a member is ready, and those that are not wait for resources."""
        return False

    def _needed(self) -> bool:
        """Tell whether the thread has anything to do, now or later."""
        return bool(self._inner)

    def _jobspecs(self, completion: Completion, first: int) -> list[Jobspec]:
        """Return the jobs to submit; their tokens count from `first`."""
        raise NotImplementedError

    def _on_message(self, completion: Completion, message: PeerMessage) -> None:
        """Take a message of a member's program; the first is a HELLO with the token."""
        raise NotImplementedError

    def _on_peer_lost(self, peer: PeerId) -> None:
        """Note that a member's program has ended."""
        raise NotImplementedError

    def _tell_to_end(self, completion: Completion, inner: Inner) -> None:
        """Send a member's program the message after which it ends."""
        raise NotImplementedError

    # -- members ----------------------------------------------------------------------------------

    def _on_ended(self, event: JobEnded) -> None:
        token = next(token for token, inner in self._inner.items() if inner.job_id == event.job_id)
        inner = self._inner.pop(token)
        result = event.result
        why = result.stderr or result.note or result.status.value
        if not result.ok and inner.state is not InnerState.CANCELED:
            logger.warning("%s ended job=%s: %s", self.NOUN, inner.name, why)
        if inner.member is not None:
            # Not by its connection alone: a broken one to another node may stay silent.
            self._registry.remove(inner.member, why)

    def _end_all(self, completion: Completion) -> None:
        for inner in self._in_state(InnerState.READY):
            self._retire(completion, inner.name)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._inner and (left := deadline - time.monotonic()) > 0:
            self._step(completion, left)
        self._cancel(self._in_state(InnerState.SUBMITTED, InnerState.RETIRING))

    def _in_state(self, *states: InnerState) -> list[Inner]:
        return [inner for inner in self._inner.values() if inner.state in states]

    def _retire(self, completion: Completion, name: str) -> None:
        for inner in self._in_state(InnerState.READY):
            if inner.name == name:
                inner.move_to(InnerState.RETIRING)
                self._tell_to_end(completion, inner)

    def _cancel(self, inner: Iterable[Inner]) -> None:
        job_ids = []
        for each in inner:
            each.move_to(InnerState.CANCELED)
            job_ids.append(each.job_id)
        if job_ids:
            connection = self._outer.connect()
            connection.cancel(job_ids, "it is not needed any more")
            connection.close()


class InstanceLauncher(Launcher):
    """Starts and ends inner instances.

    Parameters
    ----------
    outer, add, registry
        See :class:`Launcher`.
    shares : list of (int, int)
        Nodes, and cores on each, of the instances to start.
    attach : callable
        Returns the instance at a URI on a host, started.
    """

    def __init__(
        self,
        outer: FluxInstance,
        add: Callable[[str, MemberInstance], Member],
        registry: MemberRegistry,
        shares: Sequence[tuple[int, int]],
        attach: Callable[[str, str], Instance],
    ) -> None:
        super().__init__(outer, add, registry)
        self._shares = shares
        self._attach = attach
        self._waiting: Collection[JobId] | None = None

    def _others_wait(self) -> bool:
        waiting = self._waiting
        return waiting is not None and all(
            inner.job_id in waiting for inner in self._in_state(InnerState.SUBMITTED)
        )

    def _act_on(self, completion: Completion, event: Event) -> None:
        if isinstance(event, Usage):
            self._waiting = event.waiting
        super()._act_on(completion, event)

    def _jobspecs(self, completion: Completion, first: int) -> list[Jobspec]:
        environment = completion.channel().environment
        return [
            _jobspec(nodes, cores, token, environment)
            for token, (nodes, cores) in enumerate(self._shares, first)
        ]

    def _on_message(self, completion: Completion, message: PeerMessage) -> None:
        for _, _, token, payload in frames.decode(message.body):
            inner = self._inner.get(token)
            if inner is None or inner.state is not InnerState.SUBMITTED:
                continue  # It has ended or was canceled meanwhile.
            inner.move_to(InnerState.READY)
            inner.peer = message.peer
            about = frames.decode_json(payload)
            try:
                inner.member = self._add(inner.name, self._attach(about["node"], about["host"]))
            except Exception as error:
                logger.warning("inner instance not usable job=%s: %s", inner.name, error)
                self._retire(completion, inner.name)
            else:
                completion.survey()

    def _on_peer_lost(self, peer: PeerId) -> None:
        """Drain an instance whose initial program has ended: it is ending, and can start nothing."""
        for inner in self._inner.values():
            if inner.peer == peer and inner.member is not None:
                self._registry.drain(inner.member)

    def _tell_to_end(self, completion: Completion, inner: Inner) -> None:
        completion.send(inner.peer, frames.encode(frames.RETIRE))


def attach(uri: str, host: str) -> Instance:
    """Attach to the inner instance at a URI that is valid on `host`.

    Raises
    ------
    InstanceUnavailable
        Says why the instance cannot be used.
    """
    path = uri.partition("://")[2]
    instance = FluxInstance.attach(uri if os.path.exists(path) else f"ssh://{host}{path}", guarded=False)
    instance.start()
    if not instance.largest_job_id():
        raise InstanceUnavailable(
            "its job ids would repeat those of other inner instances; flux-core 0.77 or later avoids that"
        )
    return instance


def _jobspec(nodes: int, cores: int, token: int, channel: Mapping[str, str]) -> Jobspec:
    """Return the jobspec of an inner instance, as ``flux alloc`` would build it."""
    request = {"num_nodes": nodes, "num_tasks": nodes, "cores_per_task": cores}
    # The initial program's channel leads through the outer instance, and `flux start` replaces FLUX_URI.
    keep = f'export {variables.OUTER_URI}="$FLUX_URI" {variables.OUTER_JOB}="$FLUX_JOB_ID"; exec "$@"'
    modprobe = [os.environ.get("FLUX_MODPROBE_PATH_APPEND"), _MODPROBE]
    conf = f"--conf=job-manager.inactive-num-limit={_KEPT_FINISHED_JOBS}"
    return build(
        Resources.from_specification(request),
        ["sh", "-c", keep, "sh", "flux", "start", conf, sys.executable, _PROGRAM],
        environment=broker_environment(),
        cwd=os.getcwd(),
        name="bulksubmit",
        shell_options={"mpi": "none"},
        own_environment={
            **channel,
            variables.MODE: "inner_instance",
            variables.TOKEN: str(token),
            variables.PING: str(PING_PERIOD),
            variables.PING_TIMEOUT: str(PING_TIMEOUT),
            "FLUX_MODPROBE_PATH_APPEND": os.pathsep.join(filter(None, modprobe)),
        },
    )
