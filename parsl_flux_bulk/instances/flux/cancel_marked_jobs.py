"""Cancel the jobs of a process that was killed; run by :mod:`.cancel_jobs_when_killed`."""

from __future__ import annotations

import time

from parsl_flux_bulk.instances.flux.handle import open_handle

MARK = "parsl_flux_bulk"
"""Key in ``attributes.system`` of the jobspecs of guarded jobs. Its value says whose the job is. Unlike an
environment variable, jobs that a job submits do not inherit the mark."""


def cancel_jobs_of(uri: str | None, mark: str) -> None:
    """Cancel every active job whose jobspec has this mark.

    The jobs are found by their jobspecs, because the process may have submitted one just before its end.
    """
    from flux.job import JobList, cancel_async, job_kvs_lookup

    handle = open_handle(uri)
    for _ in range(2):  # The second pass finds jobs whose submit request was in flight.
        for job in JobList(handle, filters=["active"], max_entries=0).jobs():
            found = job_kvs_lookup(handle, job.id, keys=["jobspec"])
            if found and found["jobspec"]["attributes"]["system"].get(MARK) == mark:
                cancel_async(handle, job.id, "the process that submitted the job was killed").wait_for()
        time.sleep(1)
