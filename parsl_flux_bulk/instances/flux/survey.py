"""Ask a Flux instance what is free, and which of this user's jobs wait, over a completion's handle.

::

    ask ──> resource.sched-status ──> job-list.list (state SCHED) ──> job-manager.queue-status ──> Usage

The queue is asked about jobs for which the scheduler gives no reason.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from parsl_flux_bulk.instances.base import JobId, Usage
from parsl_flux_bulk.instances.flux.handle import drop_future, free_of, up_of

PENDING_LIMIT = 1000
"""Waiting jobs that are asked for; behind so many, a job does not start soon whatever is free."""


_ATTRIBUTES = ["annotations", "queue", "urgency", "priority"]


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
        from flux.constants import FLUX_JOB_STATE_SCHED
        from flux.job import job_list
        from flux.resource import SchedResourceList

        try:
            resources = SchedResourceList(future.get())
        except (OSError, ValueError):
            self._pending = None  # the scheduler is not loaded, or is being reloaded
            return
        jobs = job_list(
            self._handle, max_entries=PENDING_LIMIT, attrs=_ATTRIBUTES, states=FLUX_JOB_STATE_SCHED
        )
        self._pending = jobs.then(self._on_waiting, resources, {}, {})

    def _on_waiting(
        self, future: Any, resources: Any, waiting: dict[JobId, str], unexplained: dict[str, list[JobId]]
    ) -> None:
        # A streaming RPC: one response with jobs, or several, and then ENODATA.
        try:
            response = future.get()
            for job in response["jobs"]:
                job_id = int(job["id"])
                waiting[job_id] = _reason(job)
                if not waiting[job_id]:
                    unexplained.setdefault(job.get("queue", ""), []).append(job_id)
            if response.get("version"):
                future.reset()
                return
        except OSError as error:
            if error.errno != errno.ENODATA:
                self._pending = None  # job-list is not loaded: nobody can tell which jobs wait
                return
        self._ask_queues(resources, waiting, unexplained)

    def _ask_queues(
        self, resources: Any, waiting: dict[JobId, str], unexplained: dict[str, list[JobId]]
    ) -> None:
        """Ask the next queue why jobs wait in it; report when all have answered."""
        if not unexplained:
            self._pending = None
            self._report(Usage(up_of(resources), free_of(resources), waiting, resources.down.nnodes))
            return
        queue, jobs = unexplained.popitem()
        request = self._handle.rpc("job-manager.queue-status", {"name": queue} if queue else {}, nodeid=0)
        self._pending = request.then(self._on_queue, jobs, resources, waiting, unexplained)

    def _on_queue(
        self, future: Any, jobs: list[JobId], resources: Any, waiting: Any, unexplained: Any
    ) -> None:
        try:
            queue = future.get()
        except OSError:
            queue = {}  # it was removed
        if not queue.get("start", True):
            why = f"scheduling is stopped: {queue.get('stop_reason') or 'flux queue stop'}"
            waiting.update(dict.fromkeys(jobs, why))
        self._ask_queues(resources, waiting, unexplained)


def _reason(job: dict[str, Any]) -> str:
    """Return why a job waits, as `flux jobs` says it; "" if neither its scheduler nor its priority tells."""
    scheduler = job.get("annotations", {}).get("sched", {})
    reason = str(scheduler.get("reason_pending", "")) if isinstance(scheduler, dict) else ""
    if job.get("urgency") == 0:
        return "held (urgency 0)"
    return reason or ("priority-hold (priority 0)" if job.get("priority") == 0 else "")
