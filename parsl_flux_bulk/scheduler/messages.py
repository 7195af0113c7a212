"""What the scheduler tells others to do. To be carried out in order, each exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from parsl_flux_bulk.instances.base import PeerId

if TYPE_CHECKING:
    from parsl_flux_bulk.scheduler.model import TaskJob, WorkerJob
    from parsl_flux_bulk.scheduler.task import Outcome, Task, TaskFunction


class SubmitJob:
    """Submit a job; `Scheduler.job_ended` is to follow, even if it is refused."""

    __slots__ = ("job",)

    def __init__(self, job: WorkerJob | TaskJob) -> None:
        self.job = job


class CancelJob:
    """Cancel a job that was submitted."""

    __slots__ = ("job", "reason")

    def __init__(self, job: WorkerJob | TaskJob, reason: str) -> None:
        self.job = job
        self.reason = reason


class Give:
    """Send tasks to a worker, or (slot 0) a task job's task to one of its ranks.

    Attributes
    ----------
    peer : PeerId
    slot : int
    tasks : list of Task
        In the order in which they are to run.
    functions : sequence of TaskFunction
        To be sent before the tasks: this peer has not seen them, or was told to forget them.
    forget : sequence of int
        Functions that this peer is to forget, before anything else is sent.
    """

    __slots__ = ("forget", "functions", "peer", "slot", "tasks")

    def __init__(
        self,
        peer: PeerId,
        slot: int,
        tasks: list[Task],
        functions: Sequence[TaskFunction],
        forget: Sequence[int] = (),
    ) -> None:
        self.peer = peer
        self.slot = slot
        self.tasks = tasks
        self.functions = functions
        self.forget = forget


class Recall:
    """Ask for a task back, or for all (task_id 0) that a worker has not started."""

    __slots__ = ("peer", "slot", "task_id")

    def __init__(self, peer: PeerId, slot: int, task_id: int = 0) -> None:
        self.peer = peer
        self.slot = slot
        self.task_id = task_id


class Kill:
    """Kill a worker's process if this task is what it runs."""

    __slots__ = ("peer", "slot", "task_id")

    def __init__(self, peer: PeerId, slot: int, task_id: int) -> None:
        self.peer = peer
        self.slot = slot
        self.task_id = task_id


class Retire:
    """Tell a peer to end. It has no tasks."""

    __slots__ = ("peer",)

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer


class Resolve:
    """A task has ended: tell its future."""

    __slots__ = ("outcome", "task")

    def __init__(self, task: Task, outcome: Outcome) -> None:
        self.task = task
        self.outcome = outcome


Instruction: TypeAlias = SubmitJob | CancelJob | Give | Recall | Kill | Retire | Resolve
