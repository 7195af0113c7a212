"""Flux instances inside a Flux instance: more small jobs a second than one broker can start.

::

    outer instance ── jobs, `flux start` ──> worker/inner_instance.py: HELLO with its URI, over the channel
                                                   │
    InnerInstances, a Federation <── add ── InstanceLauncher, a thread in the outer instance's completion

A job costs a broker about 25 ms of work, in threads that wait for each other, whatever its instance has:
so one instance starts some 40 jobs a second, on two cores or on two hundred. Several instances, each with its
share of the cores, start as many times more. They are jobs of the outer one, which binds them to their cores.
No two of them give the same job id (``modprobe/rc1.d``): jobs may name files by theirs.

The inner ones get the jobs that fit them. The first that does not (it is too large, wants GPUs, or names what
only the outer instance has) has them dissolved: they get no more jobs, end as they fall empty, and all that
follows goes to the outer instance in the order in which it comes. So nothing waits for ever.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import (
    Capacity,
    Completion,
    Instance,
    JobEnded,
    JobId,
    JobRequest,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
)
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.instances.federation.members import Member, own_id
from parsl_flux_bulk.instances.flux.broker import KEPT_FINISHED_JOBS
from parsl_flux_bulk.instances.flux.instance import FluxInstance
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.job_environment import base_environment
from parsl_flux_bulk.jobspec.jobspec import Demand
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.protocol import frames, variables

logger = logging.getLogger(__name__)

START_TIMEOUT = 30.0
"""Seconds that inner instances may take to come up; those that have not by then are not waited for."""

STOP_TIMEOUT = 15.0
"""Seconds that they may take to end before their jobs are cancelled."""

JOBS_PER_INSTANCE = 100
"""Small jobs from which on the start of one more instance, a second of a core's time, is worth while."""

MOST_INSTANCES = 16
"""Started unless somebody asks for more: one takes some 60 MB of memory."""

LIMIT = 100
"""Instances at most: of ranges of job ids there are 127."""

PING_PERIOD = 2.0
"""Seconds within which an inner instance notices that we are gone."""

PATIENCE = 86400.0
"""Seconds for which we may be there and yet not answer, stopped by Ctrl-Z, say."""

_HERE = Path(__file__).resolve().parent
_PROGRAM = str(_HERE.parents[1] / "worker" / "main.py")
_MODPROBE = str(_HERE / "modprobe")


class InnerInstances(Federation):
    """A Flux instance, with others inside it for the small jobs.

    Parameters
    ----------
    outer : FluxInstance
    most : int
        How many instances to start inside; fewer where there are fewer cores.
    """

    member_kind = "instance"

    def __init__(self, outer: FluxInstance, most: int) -> None:
        super().__init__()
        self._instance = outer
        self._most = most
        self._outer: Member | None = None
        self._launcher: InstanceLauncher | None = None
        self._dissolved = False

    @property
    def description(self) -> str:
        inside = len(self.members) - 1
        return self._instance.description + (f", with {inside} instances inside" if inside > 0 else "")

    def start(self) -> None:
        self._instance.start()
        self._outer = self.add("outside", self._instance)
        shares = divide(self._outer.capacity, self._most)
        if len(shares) > 1:
            self._launcher = InstanceLauncher(self, self._instance, shares)
            self._launcher.start()

    def place(self, demand: Demand) -> Member | Refusal | JobId:
        if self._outer is not None and self._outer.lost:
            raise InstanceLost(self._outer.lost)
        return super().place(demand)

    def total(self) -> Capacity:
        # The others' cores are among its own.
        return self._outer.capacity if self._outer is not None else Capacity(0, 0, 0)

    def job_name(self, job_id: JobId) -> str:
        # All are Flux, and write ids alike; also one that is gone, whose jobs are still spoken of.
        return self._instance.job_name(own_id(job_id))

    def add_inner(self, name: str, instance: FluxInstance) -> Member:
        """Add an instance that is the job of this name in the outer one."""
        member = self.add(name, instance)
        with self.lock:
            if self._dissolved:  # it comes too late
                self._retire(member)
        return member

    def placed(self, member: Member, demand: Demand, answer: JobId | Refusal | None) -> JobId | Refusal:
        with self.lock:
            answer = super().placed(member, demand, answer)
            self._let_go_if_empty(member)
            return answer

    def job_ended(self, member: Member, job_id: JobId) -> None:
        with self.lock:
            super().job_ended(member, job_id)
            self._let_go_if_empty(member)

    def close(self) -> None:
        # They are jobs of the outer one, which is to be there until they have ended.
        for member in self.members:
            if member is not self._outer:
                self.remove(member, "shutdown")
        if self._launcher is not None:
            self._launcher.stop()
        super().close()
        if self._outer is None:
            self._instance.close()

    def _preferred(self, possible: list[Member], demand: Demand) -> list[Member]:
        inner = [member for member in possible if member is not self._outer]
        if inner and not demand.particular:
            return inner
        if not self._dissolved:
            self._dissolve()
        outer = [member for member in possible if member is self._outer]
        return outer or possible

    def _dissolve(self) -> None:
        self._dissolved = True
        if self._launcher is not None:
            self._launcher.enough()
        for member in self.members:
            if member is not self._outer:
                self._retire(member)

    def _retire(self, member: Member) -> None:
        self.close_member(member)
        self._let_go_if_empty(member)

    def _let_go_if_empty(self, member: Member) -> None:
        # By its cores: jobs that are on their way to it count as well.
        if member.closing and not member.cores_used and self._launcher is not None:
            self._launcher.retire(member.name)


def nest(instance: Instance, instances: int) -> Instance:
    """Return an instance with so many others inside it; itself for 1.

    Raises
    ------
    ValueError
        If it is not Flux, or the number is too large.
    """
    if instances < 2:
        return instance
    if instances > LIMIT:
        raise ValueError(f"instances must be at most {LIMIT}, not {instances}")
    if not isinstance(instance, FluxInstance):
        raise ValueError(f"instances={instances} needs Flux: only a Flux instance can have others inside it")
    return InnerInstances(instance, instances)


def automatic(instance: Instance, jobs: int) -> int:
    """How many instances are worth starting inside for so many small jobs; 0 or 1 is none.

    Only in an instance of our own: in another's, people will look for their jobs.
    """
    if isinstance(instance, FluxInstance) and instance.owned:
        return min(jobs // JOBS_PER_INSTANCE, MOST_INSTANCES)
    return 0


def divide(capacity: Capacity, most: int) -> list[tuple[int, int]]:
    """Share an instance out.

    Returns
    -------
    list of (int, int)
        For each part: its nodes, and its cores on each of them. There are at most `most` parts; all nodes
        are taken to be alike.
    """
    nodes, cores = max(1, capacity.nodes), capacity.cores // max(1, capacity.nodes)
    if most <= nodes:
        return [(len(range(part, nodes, most)), cores) for part in range(most)]
    parts = min(most // nodes, cores)
    return [(1, len(range(part, cores, parts))) for part in range(parts)] * nodes


class InstanceLauncher(threading.Thread):
    """Starts the inner instances, hears of their ends, and ends them."""

    def __init__(self, owner: InnerInstances, outer: FluxInstance, shares: list[tuple[int, int]]) -> None:
        super().__init__(name="flux-bulk-nested", daemon=True)
        self._owner = owner
        self._outer = outer
        self._shares = shares
        self._completion: Completion | None = None
        self._settled = threading.Event()
        self._jobs: dict[JobId, str] = {}
        self._names: dict[int, str] = {}
        self._cancelled: set[JobId] = set()
        self._up: dict[str, PeerId] = {}
        self._to_retire: deque[str] = deque()
        self._members: dict[str, Member] = {}
        self._enough = False
        self._stopping = False

    def start(self) -> None:
        """Start them, and wait until each is up, or has failed, or is late."""
        super().start()
        if not self._settled.wait(START_TIMEOUT):
            logger.warning("not all instances inside Flux came up within %g s: going on", START_TIMEOUT)

    def enough(self) -> None:
        """Do without those that are not up yet; returns at once."""
        self._enough = True
        self._wake()

    def retire(self, name: str) -> None:
        """End an instance, which has no jobs; returns at once."""
        self._to_retire.append(name)
        self._wake()

    def stop(self) -> None:
        """End them all; bounded in time."""
        self._stopping = True
        self._wake()
        self.join(2 * STOP_TIMEOUT)

    def _wake(self) -> None:
        completion = self._completion
        if completion is not None:
            completion.wake()

    # -- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            # Were a guard to cancel them, they had little time to end their own jobs: the keepers do better.
            self._completion = completion = self._outer.completion(guarded=False)
            try:
                self._submit(completion)
                while self._jobs and not self._stopping:
                    self._turn(completion, None)
                self._end(completion)
            finally:
                self._completion = None
                completion.close()
        except InstanceLost as error:
            logger.error("the instances inside Flux are lost: %s", error)
        except Exception:
            logger.exception("the thread of the instances inside Flux failed")
        finally:
            self._settled.set()

    def _submit(self, completion: Completion) -> None:
        environment = completion.channel().environment
        requests = [
            JobRequest(_jobspec(nodes, cores, token, environment))
            for token, (nodes, cores) in enumerate(self._shares)
        ]
        connection = self._outer.connect()
        try:
            answers = connection.submit(requests)
        finally:
            connection.close()
        for token, answer in enumerate(answers):
            if isinstance(answer, Refusal):
                logger.warning("no instance inside Flux: %s", answer.reason)
            else:
                self._jobs[answer] = self._names[token] = self._outer.job_name(answer)
                completion.watch(answer)

    def _turn(self, completion: Completion, timeout: float | None) -> None:
        while self._to_retire:
            # One that is not up any more has nothing to be told.
            completion.send(self._up.get(self._to_retire.popleft()), frames.encode(frames.RETIRE))
        if self._enough or self._stopping:
            late = [i for i, name in self._jobs.items() if name not in self._up and i not in self._cancelled]
            self._cancel(late)
        for event in completion.poll(timeout):
            if isinstance(event, PeerMessage):
                self._hear(event)
            elif isinstance(event, PeerLost):
                self._ending(event.peer)
            elif isinstance(event, JobEnded):
                self._ended(self._jobs.pop(event.job_id), event)
        if len(self._up) >= len(self._jobs):
            self._settled.set()

    def _ending(self, peer: PeerId) -> None:
        """An instance's keeper is gone: it is ending, and can start nothing any more."""
        for name, member in self._members.items():
            if self._up.get(name) == peer:
                self._owner.close_member(member)

    def _ended(self, name: str, event: JobEnded) -> None:
        result = event.result
        why = result.stderr or result.note or result.status.value
        if not result.ok and event.job_id not in self._cancelled:
            logger.warning("instance %s inside Flux ended: %s", name, why)
        member = self._members.pop(name, None)
        if member is not None:
            self._owner.remove(member, why)

    def _hear(self, message: PeerMessage) -> None:
        """An instance is up, and says where."""
        for _, _, token, payload in frames.decode(message.body):
            name = self._names[token]
            self._up[name] = message.peer
            about = frames.decode_json(payload)
            try:
                instance = FluxInstance.attach(_reachable(about["node"], about["host"]), guarded=False)
                instance.start()
                if not instance.largest_job_id():
                    raise InstanceUnavailable(
                        "its jobs would have ids of others; flux-core 0.77 can do better"
                    )
                self._members[name] = self._owner.add_inner(name, instance)
            except Exception as error:
                logger.warning("instance %s inside Flux cannot be used: %s", name, error)
                self._to_retire.append(name)

    def _end(self, completion: Completion) -> None:
        self._to_retire.extend(self._up)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._jobs and (left := deadline - time.monotonic()) > 0:
            self._turn(completion, left)
        self._cancel(list(self._jobs))

    def _cancel(self, job_ids: list[JobId]) -> None:
        self._cancelled.update(job_ids)
        if job_ids:
            connection = self._outer.connect()
            connection.cancel(job_ids, "it is not needed any more")
            connection.close()


def _jobspec(nodes: int, cores: int, token: int, channel: Mapping[str, str]) -> Jobspec:
    """The job that is an inner instance, as ``flux alloc`` would have it."""
    whole = {"num_nodes": nodes, "num_tasks": nodes, "cores_per_task": cores}
    # The keeper's channel leads through the outer instance.
    put_aside = f'export {variables.OUTER_URI}="$FLUX_URI" {variables.OUTER_JOB}="$FLUX_JOB_ID"; exec "$@"'
    theirs = os.environ.get("FLUX_MODPROBE_PATH_APPEND")
    conf = f"--conf=job-manager.inactive-num-limit={KEPT_FINISHED_JOBS}"
    return build(
        Resources.from_specification(whole),
        ["sh", "-c", put_aside, "sh", "flux", "start", conf, sys.executable, _PROGRAM],
        environment=base_environment(os.environ),
        cwd=os.getcwd(),
        name="bulksubmit",
        shell_options={"mpi": "none"},
        own_environment={
            **channel,
            variables.MODE: "inner_instance",
            variables.TOKEN: str(token),
            variables.PING: str(PING_PERIOD),
            variables.PING_TIMEOUT: str(PATIENCE),
            "FLUX_MODPROBE_PATH_APPEND": os.pathsep.join([*filter(None, [theirs]), _MODPROBE]),
        },
    )


def _reachable(uri: str, host: str) -> str:
    """The URI of an instance as it is from here: it says where its socket is on its own host."""
    path = uri.partition("://")[2]
    return uri if os.path.exists(path) else f"ssh://{host}{path}"
