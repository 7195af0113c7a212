"""Ask a Flux instance what is free, and which of this user's jobs wait, over a completion's handle.

::

    ask ──> resource.sched-status ──> job-list.list (SCHED, RUN) ──> job-manager.queue-status ──> Usage

Of the jobs that run, the worker jobs of executors count. The queue is asked about jobs for which the
scheduler gives no reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from parsl_flux_bulk.instances.base import JobId, Usage, WorkerCores
from parsl_flux_bulk.instances.flux.handle import drop_future, free_of, up_of
from parsl_flux_bulk.protocol.worker_job_name import parse_name

JOBS_LIMIT = 1000
"""Jobs that are asked for, of those that wait and of those that run. Behind so many, a job does not start
soon whatever is free; and where so many run, executors do not share by demand."""


_WAITING = ["annotations", "queue", "urgency", "priority", "name", "ncores"]
_RUNNING = ["name", "ncores"]


@dataclass(slots=True)
class _Answer:
    """What is known so far."""

    resources: Any
    waiting: dict[JobId, str] = field(default_factory=dict)
    unexplained: dict[str, list[JobId]] = field(default_factory=dict)
    executors: dict[str, WorkerCores] = field(default_factory=dict)
    running: int = 0

    def add_waiting(self, job: dict[str, Any]) -> None:
        job_id = int(job["id"])
        reason = self.waiting[job_id] = _reason(job)
        if not reason:
            self.unexplained.setdefault(job.get("queue", ""), []).append(job_id)
        about = parse_name(job.get("name", ""))
        if about is None:
            return
        cores = self.executors.setdefault(about.mark, WorkerCores())
        # Cores that are free may be spread over nodes none of which has room for a wide worker; and nobody
        # knows which GPUs a job would get.
        if not about.gpus and (about.cores == 1 or self.resources.up.nnodes == 1):
            cores.wanted[job_id] = job.get("ncores", 0)

    def add_running(self, job: dict[str, Any]) -> None:
        self.running += 1
        about = parse_name(job.get("name", ""))
        if about is not None:
            before = self.executors.get(about.mark, WorkerCores())
            self.executors[about.mark] = WorkerCores(before.held + job.get("ncores", 0), before.wanted)

    def usage(self) -> Usage:
        complete = self.running < JOBS_LIMIT
        return Usage(
            up_of(self.resources),
            free_of(self.resources),
            self.waiting,
            self.resources.down.nnodes,
            executors=self.executors if complete else {},
        )


class Survey:
    """One question at a time; an instance that cannot answer, for want of a module, is asked in vain.

    Parameters
    ----------
    handle : flux.Flux
    report : callable
        Called with the answer.
    """

    def __init__(self, handle: Any, report: Callable[[Usage], None]) -> None:
        self._handle = handle
        self._report = report
        self._pending: Any = None

    def ask(self) -> None:
        """Send the question, unless the last one is not answered yet."""
        if self._pending is None:
            # Not `flux.resource.resource_list`: nobody can let go of the request that is inside its future,
            # which keeps the handle open for good if the answer is not awaited.
            request = self._handle.rpc("resource.sched-status", nodeid=0)
            self._pending = request.then(self._on_resources)

    def close(self) -> None:
        """Await no answer any more."""
        if self._pending is not None:
            drop_future(self._pending)

    def _on_resources(self, future: Any) -> None:
        from flux.constants import FLUX_JOB_STATE_RUNNING, FLUX_JOB_STATE_SCHED
        from flux.resource import SchedResourceList

        try:
            answer = _Answer(SchedResourceList(future.get()))
        except (OSError, ValueError):
            self._pending = None  # the scheduler is not loaded, or is being reloaded
            return

        def list_running() -> None:
            self._list(FLUX_JOB_STATE_RUNNING, _RUNNING, answer.add_running, lambda: self._ask_queues(answer))

        self._list(FLUX_JOB_STATE_SCHED, _WAITING, answer.add_waiting, list_running)

    def _list(
        self,
        state: int,
        attributes: list[str],
        add: Callable[[dict[str, Any]], None],
        proceed: Callable[[], None],
    ) -> None:
        """Call `add` with each of this user's jobs in a state, and then `proceed`."""
        mine: list[dict[str, list[int]]] = [{"userid": [os.getuid()]}, {"states": [state]}]
        request = {"max_entries": JOBS_LIMIT, "attrs": attributes, "since": 0.0, "constraint": {"and": mine}}
        # Not `flux.job.job_list`: it gets each job in a message of its own, which costs 20 times as much.
        self._pending = self._handle.rpc("job-list.list", request).then(self._on_jobs, add, proceed)

    def _on_jobs(
        self, future: Any, add: Callable[[dict[str, Any]], None], proceed: Callable[[], None]
    ) -> None:
        try:
            jobs = future.get()["jobs"]
        except OSError:
            self._pending = None  # job-list is not loaded: nobody can tell which jobs wait
            return
        for job in jobs:
            add(job)
        proceed()

    def _ask_queues(self, answer: _Answer) -> None:
        """Ask the next queue why jobs wait in it; report when all have answered."""
        if not answer.unexplained:
            self._pending = None
            self._report(answer.usage())
            return
        queue, jobs = answer.unexplained.popitem()
        request = self._handle.rpc("job-manager.queue-status", {"name": queue} if queue else {}, nodeid=0)
        self._pending = request.then(self._on_queue, jobs, answer)

    def _on_queue(self, future: Any, jobs: list[JobId], answer: _Answer) -> None:
        try:
            queue = future.get()
        except OSError:
            queue = {}  # it was removed
        if not queue.get("start", True):
            why = f"scheduling is stopped: {queue.get('stop_reason') or 'flux queue stop'}"
            answer.waiting.update(dict.fromkeys(jobs, why))
        self._ask_queues(answer)


def _reason(job: dict[str, Any]) -> str:
    """Return why a job waits, as `flux jobs` says it; "" if neither its scheduler nor its priority tells."""
    scheduler = job.get("annotations", {}).get("sched", {})
    reason = str(scheduler.get("reason_pending", "")) if isinstance(scheduler, dict) else ""
    if job.get("urgency") == 0:
        return "held (urgency 0)"
    return reason or ("priority-hold (priority 0)" if job.get("priority") == 0 else "")
