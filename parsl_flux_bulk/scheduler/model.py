"""The scheduler's picture of jobs, and of the processes inside them that have connected.

Records; what is done with them is in :mod:`parsl_flux_bulk.scheduler.lifecycle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parsl_flux_bulk.instances.base import PeerId
from parsl_flux_bulk.pipeline.job import Job
from parsl_flux_bulk.scheduler.capacity import Allocation
from parsl_flux_bulk.scheduler.task import Loss, Task
from parsl_flux_bulk.scheduler.timers import Timer

if TYPE_CHECKING:
    from parsl_flux_bulk.jobspec.resources import Shape
    from parsl_flux_bulk.scheduler.worker_group import Worker, WorkerGroup


class ExecutorJob(Job):
    """What both kinds of job have in common.

    Attributes
    ----------
    token : int
        Names the job to the processes inside it.
    allocation : Allocation
        What it takes of the instance.
    peers : dict of int to Peer
        Those that have said hello, by rank; lost ones included.
    size : int
        How many peers there will be; 0 until one has said hello.
    submitted, cancelled : bool
        Whether we said so.
    """

    __slots__ = (
        "allocation",
        "cancelled",
        "peers",
        "size",
        "submitted",
        "token",
    )

    def __init__(self, token: int, allocation: Allocation) -> None:
        super().__init__()
        self.token = token
        self.allocation = allocation
        self.peers: dict[int, Peer] = {}
        self.size = 0
        self.submitted = False
        self.cancelled = False

    @property
    def connected(self) -> list[Peer]:
        """The peers that are there."""
        return [peer for peer in self.peers.values() if not peer.lost]

    @property
    def host(self) -> str:
        """Where it runs, as far as is known."""
        return ", ".join(dict.fromkeys(peer.host for peer in self.peers.values()))


class TaskJob(ExecutorJob):
    """A job that runs one task.

    Attributes
    ----------
    task : Task
    value : bytes
        The outcome of rank 0.
    began : float or None
        When it got its resources, as far as we can tell.
    """

    __slots__ = ("began", "task", "value")

    def __init__(self, token: int, allocation: Allocation, task: Task) -> None:
        super().__init__(token, allocation)
        self.task = task
        self.value = b""
        self.began: float | None = None

    def __repr__(self) -> str:
        return f"<TaskJob {self.token} of {self.task}>"


class WorkerJob(ExecutorJob):
    """A job that starts workers of one shape.

    Attributes
    ----------
    group : WorkerGroup
    slots : int
        Workers that it starts.
    live : int
        Workers that the group may count on: `slots`, less those that were lost.
    busy : int
        Workers that have tasks.
    leaving : bool
        It gets no more tasks, and its cores will be free before long.
    ends_with_block : bool
        It leaves because its block does, so it cannot stay after all.
    retired : bool
        Its peers have been told to end.
    since : float
        When it was submitted, and then when its first peer said hello.
    idle_since : float
        When its last task ended, if `busy` is 0.
    idle_timer : Timer or None
        Looks at `idle_since`.
    overdue : Timer or None
        Cancels it if it has not ended by then.
    """

    __slots__ = (
        "busy",
        "ends_with_block",
        "group",
        "idle_since",
        "idle_timer",
        "leaving",
        "live",
        "overdue",
        "retired",
        "since",
        "slots",
    )

    def __init__(
        self, token: int, allocation: Allocation, group: WorkerGroup, slots: int, now: float
    ) -> None:
        super().__init__(token, allocation)
        self.group = group
        self.slots = slots
        self.live = slots
        self.busy = 0
        self.leaving = False
        self.ends_with_block = False
        self.retired = False
        self.since = now
        self.idle_since = now
        self.idle_timer: Timer | None = None
        self.overdue: Timer | None = None

    def __repr__(self) -> str:
        return f"<WorkerJob {self.token}: {self.slots} of {self.shape}>"

    @property
    def shape(self) -> Shape:
        """What each of its workers has."""
        return self.group.shape

    @property
    def starting(self) -> bool:
        """Whether nobody has said hello yet."""
        return not self.peers


class Peer:
    """A connected process of a job: a pool of workers, or a rank of a task job.

    Attributes
    ----------
    peer_id : PeerId
    job : WorkerJob or TaskJob
    rank, node, host, pid : what it said of itself
    workers : list of Worker
        By slot; none for a rank.
    functions : dict of int to None
        Functions that it has, the latest last.
    lost : bool
        It is not connected any more.
    gone : bool
        It, or its job, has ended: it can be given nothing.
    finished : bool
        A rank that has sent its outcome.
    start_failures : int
        Deaths of its workers in a row, none while a task ran.
    verdict : Loss or None
        What tasks end with that it gives back.
    """

    __slots__ = (
        "finished",
        "functions",
        "gone",
        "host",
        "job",
        "lost",
        "node",
        "peer_id",
        "pid",
        "rank",
        "start_failures",
        "verdict",
        "workers",
    )

    def __init__(
        self, peer_id: PeerId, job: WorkerJob | TaskJob, rank: int, host: str, pid: int, node: object
    ) -> None:
        self.peer_id = peer_id
        self.job = job
        self.rank = rank
        self.host = host
        self.node = node
        self.pid = pid
        self.workers: list[Worker] = []
        self.functions: dict[int, None] = {}
        self.lost = False
        self.gone = False
        self.finished = False
        self.start_failures = 0
        self.verdict: Loss | None = None
