"""The scheduler's records of worker groups, jobs, peers and workers.

::

    WorkerGroup (a shape: its waiting tasks) ── WorkerJob ── Peer (a manager) ── Worker (a slot: its queue)
                                                TaskJob   ── Peer (a rank)

Their states are in :mod:`.states`, what changes them in :mod:`.lifecycle`, :mod:`.assignment` and
:mod:`.outcomes`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from parsl_flux_bulk.instances.base import PeerId
from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.pipeline.job import Job
from parsl_flux_bulk.protocol.states import State, Stateful
from parsl_flux_bulk.scheduler.capacity import Allocation
from parsl_flux_bulk.scheduler.service_time import ServiceTime
from parsl_flux_bulk.scheduler.states import PeerState, TaskJobState, WorkerJobState, WorkerState
from parsl_flux_bulk.scheduler.task import CallTask, Loss, Task
from parsl_flux_bulk.scheduler.task_queue import TaskQueue
from parsl_flux_bulk.scheduler.timers import Timer
from parsl_flux_bulk.scheduler.worker_unit import WorkerUnit

NO_LIMIT = 1 << 30


class ExecutorJob(Job, Stateful):
    """A job of an executor.

    Attributes
    ----------
    token : int
        Identifies the job to the processes inside it.
    allocation : Allocation
        What it takes of the instance.
    peers : dict of int to Peer
        Those that have connected, by rank; lost ones included.
    size : int
        Number of peers that will connect; 0 until one has.
    """

    __slots__ = ("allocation", "peers", "size", "token")

    def __init__(self, token: int, allocation: Allocation) -> None:
        super().__init__()
        self.token = token
        self.allocation = allocation
        self.peers: dict[int, Peer] = {}
        self.size = 0

    @property
    def host(self) -> str:
        """Hosts of its peers, separated by commas; "" before one has connected."""
        return ", ".join(dict.fromkeys(peer.host for peer in self.peers.values()))


class TaskJob(ExecutorJob):
    """A job that runs one task.

    Attributes
    ----------
    state : TaskJobState
    task : Task
    value : bytes
        The outcome of rank 0.
    times : bytes
        When rank 0 started and ended the task, as in its OUTCOME.
    began : float or None
        When it got its resources, as far as the scheduler can tell.
    """

    __slots__ = ("began", "state", "task", "times", "value")

    def __init__(self, token: int, allocation: Allocation, task: Task) -> None:
        super().__init__(token, allocation)
        self.state = TaskJobState.HELD
        self.task = task
        self.value = self.times = b""
        self.began: float | None = None

    def __repr__(self) -> str:
        return f"<TaskJob {self.token} {self.state} of {self.task}>"


class WorkerJob(ExecutorJob):
    """A job that starts workers of one shape.

    Attributes
    ----------
    state : WorkerJobState
    group : WorkerGroup
    slots : int
        Workers that it starts.
    unit : WorkerUnit
        What its workers share.
    live : int
        `slots`, less the workers of lost peers.
    busy : int
        Workers that have tasks.
    since : float
        When it was submitted, and then when its first peer connected.
    idle_since : float
        When its last task ended, if `busy` is 0.
    idle_timer : Timer or None
        Ends the job when it has been idle for long enough.
    end_timer : Timer or None
        Cancels the job if it does not end soon enough.
    """

    __slots__ = (
        "busy", "end_timer", "group", "idle_since", "idle_timer", "live", "since", "slots", "state", "unit",
    )  # fmt: skip

    def __init__(
        self,
        token: int,
        allocation: Allocation,
        group: WorkerGroup,
        slots: int,
        now: float,
        unit: WorkerUnit | None = None,
    ) -> None:
        super().__init__(token, allocation)
        self.state = WorkerJobState.STARTING
        self.group = group
        self.slots = slots
        self.unit = unit or WorkerUnit(1, int(group.shape.cores), int(group.shape.gpus))
        self.live = slots
        self.busy = 0
        self.since = now
        self.idle_since = now
        self.idle_timer: Timer | None = None
        self.end_timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<WorkerJob {self.token} {self.state}: {self.slots} of {self.shape}>"

    @property
    def shape(self) -> Shape:
        """Resources of each of its workers."""
        return self.group.shape

    @property
    def starting(self) -> bool:
        """Whether no peer has connected."""
        return self.state is WorkerJobState.STARTING

    @property
    def available(self) -> bool:
        """Whether its workers get tasks, now or when they have started."""
        return self.state in (WorkerJobState.STARTING, WorkerJobState.SERVING)

    @property
    def connected(self) -> list[Peer]:
        """Its managers that are connected."""
        return [peer for peer in self.peers.values() if peer.state is not PeerState.LOST]

    @property
    def workers(self) -> list[Worker]:
        """The workers of all its managers, lost ones included."""
        return [worker for peer in self.peers.values() for worker in peer.workers]


@dataclass(slots=True, eq=False, repr=False)
class Peer(Stateful):
    """A process of a job that has connected: a manager, or a rank of a task job.

    Attributes
    ----------
    state : PeerState
    peer_id : PeerId
    job : WorkerJob or TaskJob
    rank, host, node, pid, python, block
        As it reported when it connected.
    workers : list of Worker
        By slot; empty for a rank.
    functions : dict of int to None
        Ids of the functions that it has, the latest last.
    start_failures : int
        Deaths of its workers in a row, none while a task ran.
    pending_loss : Loss or None
        The outcome of tasks that it returns, if they are not to be assigned again.
    """

    peer_id: PeerId
    job: WorkerJob | TaskJob
    rank: int
    host: str
    pid: int
    node: object
    python: str = ""
    block: str = ""
    state: State = PeerState.CONNECTED
    workers: list[Worker] = field(default_factory=list)
    functions: dict[int, None] = field(default_factory=dict)
    start_failures: int = 0
    pending_loss: Loss | None = None

    @property
    def name(self) -> str:
        """Its name, as its tasks see it in ``PARSL_WORKER_POOL_ID``."""
        return f"{self.host}-{self.pid}"

    def __repr__(self) -> str:
        return f"<Peer {self.rank} {self.state} of {self.job}>"


@dataclass(slots=True, eq=False, repr=False)
class Worker(Stateful):
    """A slot of a manager.

    Attributes
    ----------
    state : WorkerState
    peer, job, group, slot
        Where it is.
    queue : deque of CallTask
        Assigned and not ended, in order: the first may be running, and the others may be too if outcomes
        are on their way.
    size : int
        Bytes of the calls in `queue`.
    mark : float
        When it last ended a task, or became busy.
    ended, function_id : int
        Outcomes since `mark`, and the function of the last of them.
    recalled : bool
        All tasks that it has not started were recalled, and none assigned since.
    watched : bool
        A timer checks whether its queue stalls.
    cancels : int
        Canceled tasks in its queue.
    killing : int
        Id of the task whose process was to be killed last.
    name : str
        For people.
    """

    peer: Peer
    job: WorkerJob
    slot: int
    group: WorkerGroup = field(init=False)
    state: State = WorkerState.OFFLINE
    queue: deque[CallTask] = field(default_factory=deque)
    size: int = 0
    mark: float = 0.0
    ended: int = 0
    function_id: int = 0
    recalled: bool = False
    watched: bool = False
    cancels: int = 0
    killing: int = 0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.group = self.job.group
        self.name = f"worker {self.slot} on {self.peer.host}"

    def __repr__(self) -> str:
        return f"<Worker {self.slot} {self.state} of {self.peer}>"

    def remove(self, task_id: int) -> CallTask | None:
        """Remove a task from the queue, wherever in it; None if it is not there."""
        for task in self.queue:
            if task.task_id == task_id:
                self.queue.remove(task)
                self.size -= len(task.call)
                self.cancels -= task.canceled
                return task
        return None


@dataclass(slots=True, eq=False, repr=False)
class WorkerGroup:
    """All workers of one shape, and the tasks that wait for them.

    Attributes
    ----------
    shape : Shape
    queue : TaskQueue
        Tasks that no worker has.
    assigned : int
        Tasks that workers have.
    jobs : dict of WorkerJob to None
        Those that have not ended.
    slots : int
        Workers, connected or starting, of jobs that are available.
    idle, busy : dict of Worker to None
        Its workers in these states; ordered.
    backlogged : dict of Worker to None
        Workers that had more than one task when last assigned any.
    refillable : deque of Worker
        Busy workers with an outcome since the assigner last considered them.
    service_time : ServiceTime
    start_failures : int
        Jobs in a row that ended before a worker started.
    slot_limit : int
        Largest number of slots for a job; the instance refused more.
    stopped : bool
        No further workers can be started.
    short_since : float or None
        Since when it has had fewer workers than it should.
    steal_at : float or None
        When its idle workers may take what waits in the queues of others.
    """

    shape: Shape
    queue: TaskQueue = field(default_factory=TaskQueue)
    assigned: int = 0
    jobs: dict[WorkerJob, None] = field(default_factory=dict)
    slots: int = 0
    idle: dict[Worker, None] = field(default_factory=dict)
    busy: dict[Worker, None] = field(default_factory=dict)
    backlogged: dict[Worker, None] = field(default_factory=dict)
    refillable: deque[Worker] = field(default_factory=deque)
    service_time: ServiceTime = field(default_factory=ServiceTime)
    start_failures: int = 0
    slot_limit: int = NO_LIMIT
    stopped: bool = False
    short_since: float | None = None
    steal_at: float | None = None

    @property
    def waiting(self) -> int:
        """Tasks that wait for a worker."""
        return self.queue.waiting

    @property
    def workers(self) -> int:
        """Workers that get tasks."""
        return len(self.idle) + len(self.busy)

    @property
    def outstanding(self) -> int:
        """Tasks that have not ended."""
        return self.queue.waiting + self.assigned
