"""Counts of tasks, workers and jobs at one moment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.scheduler.assignment import Assigner
from parsl_flux_bulk.scheduler.lifecycle import Lifecycle
from parsl_flux_bulk.scheduler.outcomes import Outcomes
from parsl_flux_bulk.scheduler.states import PeerState, TaskState, WorkerJobState

_DRAINING = (WorkerJobState.DRAINING, WorkerJobState.RETIRING, WorkerJobState.STOPPING)


@dataclass(frozen=True)
class Status:
    """Counts at one moment.

    Attributes
    ----------
    pending, running, done, failed, canceled : int
        Tasks: not started as far as is known; started; ended with a value; ended with an exception or a
        loss; canceled.
    workers, busy_workers, cores : dict of Shape to int
        Connected workers, those of them with tasks, and cores that their jobs hold.
    worker_jobs, task_jobs : int
        Jobs that were submitted and have not ended.
    """

    pending: int
    running: int
    done: int
    failed: int
    canceled: int
    workers: dict[Shape, int]
    busy_workers: dict[Shape, int]
    cores: dict[Shape, int]
    worker_jobs: int
    task_jobs: int


def count(lifecycle: Lifecycle, assigner: Assigner, outcomes: Outcomes) -> Status:
    """Count what a scheduler has."""
    groups = [group for group in lifecycle.groups.values() if group.jobs]
    jobs = [job for group in groups for job in group.jobs]
    running = sum(job.busy for job in jobs)
    task_jobs = [job for job in lifecycle.task_jobs if job.task.state is not TaskState.DONE]
    waiting = [job for job in (*lifecycle.held, *outcomes.parked) if job.task.state is not TaskState.DONE]
    in_groups = sum(group.outstanding for group in lifecycle.groups.values())
    in_groups -= sum(worker.ended for worker in assigner.unsettled)
    return Status(
        pending=in_groups - running + len(waiting),
        running=running + len(task_jobs),
        done=outcomes.done,
        failed=outcomes.failed,
        canceled=outcomes.canceled,
        workers={group.shape: group.workers for group in groups},
        busy_workers={group.shape: len(group.busy) for group in groups},
        cores={group.shape: sum(job.allocation.cores for job in group.jobs) for group in groups},
        worker_jobs=len(jobs),
        task_jobs=len(lifecycle.task_jobs),
    )


def managers(lifecycle: Lifecycle, now: float) -> list[dict[str, Any]]:
    """Describe each connected manager, with the keys of HighThroughputExecutor's ``connected_managers``.

    Any thread may call this: each copy holds the GIL throughout.
    """
    found = []
    for group in list(lifecycle.groups.values()):
        for job in list(group.jobs):
            for peer in list(job.peers.values()):
                if peer.state is not PeerState.CONNECTED:
                    continue
                tasks = sum(len(worker.queue) for worker in peer.workers)
                found.append(
                    {
                        "manager": peer.name,
                        "block_id": peer.block or None,
                        "worker_count": len(peer.workers),
                        "tasks": tasks,
                        # Of its whole job: the scheduler does not note when a manager became idle.
                        "idle_duration": 0.0 if job.busy else max(0.0, now - job.idle_since),
                        "active": job.available,
                        "python_version": peer.python,
                        "draining": job.state in _DRAINING,
                    }
                )
    return found


def demand(lifecycle: Lifecycle, outcomes: Outcomes) -> list[tuple[Resources | Shape, int]]:
    """Return each kind of resources that tasks need which have not ended, and the number of those tasks.

    Each of the copies holds the GIL throughout: the scheduler's thread cannot change anything meanwhile.
    """
    alone = [*lifecycle.held.copy(), *list(lifecycle.task_jobs), *list(outcomes.parked)]
    needs = Counter(job.task.resources for job in alone if job.task.state is not TaskState.DONE)
    groups = list(lifecycle.groups.values())
    return [*((group.shape, group.outstanding) for group in groups), *needs.items()]
