"""The scheduler's picture of jobs, and of the processes inside them that have connected.

Records; what is done with them is in :mod:`parsl_flux_bulk.scheduler.lifecycle`.
"""

from __future__ import annotations

from collections import deque

from parsl_flux_bulk.instances.base import PeerId
from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.pipeline.job import Job
from parsl_flux_bulk.scheduler.capacity import Allocation
from parsl_flux_bulk.scheduler.service_time import ServiceTime
from parsl_flux_bulk.scheduler.task import CallTask, Loss, Task
from parsl_flux_bulk.scheduler.task_queue import TaskQueue
from parsl_flux_bulk.scheduler.timers import Timer

NO_LIMIT = 1 << 30


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
    submitted, canceled : bool
        Whether we said so.
    """

    __slots__ = (
        "allocation",
        "canceled",
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
        self.canceled = False

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


class Worker:
    """A slot of a pool.

    Attributes
    ----------
    queue : deque of CallTask
        Given and unanswered, in order: the first may be running, and, for all we know, the others.
    size : int
        Bytes of their calls.
    mark : float
        When it last ended a task, or became busy.
    ended, function_id : int
        Outcomes since `mark`, and the function of the last of them.
    serving : bool
        It may be given tasks.
    active : bool
        It is counted in its job's `busy`.
    touched : bool
        Something happened to it since the last look.
    recalled : bool
        All that it has not started has been asked back, and nothing given since.
    watched : bool
        A timer looks whether its queue stalls.
    cancels : int
        Canceled tasks in its queue.
    killing : int
        Id of the task that we asked to kill.
    """

    __slots__ = (
        "active",
        "cancels",
        "ended",
        "function_id",
        "group",
        "job",
        "killing",
        "mark",
        "peer",
        "queue",
        "recalled",
        "serving",
        "size",
        "slot",
        "touched",
        "watched",
    )

    def __init__(self, peer: Peer, job: WorkerJob, slot: int) -> None:
        self.peer = peer
        self.job = job
        self.group = job.group
        self.slot = slot
        self.queue: deque[CallTask] = deque()
        self.size = 0
        self.mark = 0.0
        self.ended = 0
        self.function_id = 0
        self.serving = False
        self.active = False
        self.touched = False
        self.recalled = False
        self.watched = False
        self.cancels = 0
        self.killing = 0

    def remove(self, task_id: int) -> CallTask | None:
        """Take a task out of the queue, wherever in it; None if it is not there."""
        for task in self.queue:
            if task.task_id == task_id:
                self.queue.remove(task)
                self.size -= len(task.call)
                self.cancels -= task.canceled
                return task
        return None


class WorkerGroup:
    """All workers of one shape, and the tasks that wait for them.

    Attributes
    ----------
    shape : Shape
    queue : TaskQueue
    given : int
        Tasks that workers have.
    jobs : dict of WorkerJob to None
        That have not ended.
    slots : int
        Workers to count on, whether there or starting: those of jobs that are not leaving.
    workers : int
        Workers that serve.
    idle, busy : dict of Worker to None
        The workers that serve, by whether they have tasks; ordered.
    laden : dict of Worker to None
        Workers that had more than one task when last given any.
    ready : list of Worker
        Busy ones with an outcome since the last look.
    service_time : ServiceTime
    start_failures : int
        Jobs in a row that ended before there was a worker.
    slot_limit : int
        Largest number of slots for a job; the instance has refused more.
    stopped : bool
        It cannot have more workers than it has.
    wished : float or None
        Since when it has wanted more workers.
    steal_at : float or None
        When `steal` is due.
    """

    __slots__ = (
        "busy",
        "given",
        "idle",
        "jobs",
        "laden",
        "queue",
        "ready",
        "service_time",
        "shape",
        "slot_limit",
        "slots",
        "start_failures",
        "steal_at",
        "stopped",
        "wished",
    )

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.queue = TaskQueue()
        self.given = 0
        self.jobs: dict[WorkerJob, None] = {}
        self.slots = 0
        self.idle: dict[Worker, None] = {}
        self.busy: dict[Worker, None] = {}
        self.laden: dict[Worker, None] = {}
        self.ready: list[Worker] = []
        self.service_time = ServiceTime()
        self.start_failures = 0
        self.slot_limit = NO_LIMIT
        self.stopped = False
        self.wished: float | None = None
        self.steal_at: float | None = None

    @property
    def waiting(self) -> int:
        """Tasks that wait for a worker."""
        return self.queue.waiting

    @property
    def workers(self) -> int:
        """Workers that serve."""
        return len(self.idle) + len(self.busy)

    @property
    def outstanding(self) -> int:
        """Tasks that have not ended."""
        return self.waiting + self.given
