"""Note when the jobs of a Flux instance start and end, from the job manager's journal.

One streaming RPC, without a request a job: the journal sends the events ``start`` and ``finish`` of every job
(RFC 21), before the end of the job is reported to those who wait for it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.instances.flux.handle import drop_future

EARLY_LIMIT = 1000
"""Jobs that are not known (yet) whose times are kept: of other programs, or submitted a moment ago."""

Times: TypeAlias = dict[str, float]


class JobTimes:
    """Listens to the journal for as long as the handle's reactor runs.

    Parameters
    ----------
    handle : flux.Flux
        Of the instance's owner: the journal is refused to guests, whose jobs then have no times.
    """

    def __init__(self, handle: Any) -> None:
        from flux.constants import FLUX_NODEID_ANY, FLUX_RPC_STREAMING

        self._known: dict[JobId, Times] = {}
        self._early: dict[JobId, Times] = {}
        names = {"allow": {"start": 1, "finish": 1}}
        request = handle.rpc("job-manager.events-journal", names, FLUX_NODEID_ANY, FLUX_RPC_STREAMING)
        self._request: Any = request.then(self._on_events)

    def add(self, job_id: JobId) -> None:
        """Keep the times of this job until `take`."""
        self._known[job_id] = self._early.pop(job_id, {})

    def take(self, job_id: JobId) -> tuple[float | None, float | None]:
        """Return when a job started and ended, as far as that is known, and forget it."""
        times = self._known.pop(job_id, {})
        return times.get("start"), times.get("finish")

    def close(self) -> None:
        """Listen no longer."""
        drop_future(self._request)

    def _on_events(self, future: Any) -> None:
        try:
            answer = future.get()
        except OSError:
            return  # refused, or the journal ended; the next poll tells if the instance is lost
        job_id = answer["id"]
        for event in answer["events"]:
            self._times_of(job_id)[event["name"]] = event["timestamp"]
        future.reset()

    def _times_of(self, job_id: JobId) -> Times:
        if job_id in self._known:
            return self._known[job_id]
        if job_id not in self._early and len(self._early) >= EARLY_LIMIT:
            del self._early[next(iter(self._early))]
        return self._early.setdefault(job_id, {})
