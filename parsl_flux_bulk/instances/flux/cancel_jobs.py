"""Cancel the jobs of an executor whose process was killed; run by :mod:`.cancel_guard`."""

from __future__ import annotations

import time

from parsl_flux_bulk.instances.base import CHANNEL_VARIABLE
from parsl_flux_bulk.instances.flux.handle import open_handle


def cancel_jobs_of(uri: str, channel: str) -> None:
    """Cancel every active job of the executor whose channel has the address `channel`.

    The jobs are found by their jobspecs, because the executor may have submitted one just before its end.
    """
    from flux.job import JobList, cancel_async, job_kvs_lookup

    handle = open_handle(uri)
    for _ in range(2):  # The second pass finds jobs whose submit request was in flight.
        for job in JobList(handle, filters=["active"], max_entries=0).jobs():
            found = job_kvs_lookup(handle, job.id, keys=["jobspec"], original=True)
            system = found["jobspec"]["attributes"]["system"] if found else {}
            if system.get("environment", {}).get(CHANNEL_VARIABLE) == channel:
                cancel_async(handle, job.id, "the executor's process was killed").wait_for()
        time.sleep(1)
