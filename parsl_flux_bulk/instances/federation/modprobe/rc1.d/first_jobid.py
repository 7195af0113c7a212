"""Run by ``flux modprobe rc1`` as an instance inside another starts: a range of job ids of its own.

See flux-modprobe(1), and `instances.federation.inner`. Flux's own Python runs this, of any version that reads
``FLUX_MODPROBE_PATH_APPEND`` (0.77 and later); nothing of this package is imported. Job ids (RFC 19) begin
with a time since the instance's start, in milliseconds, that goes on from the largest id which the job
manager finds when it is loaded. So instances that are told to be of different ages never give the same id.
"""

from __future__ import annotations

import os
from typing import Any

import flux.kvs
from flux.job import JobID
from flux.modprobe import task

RANGE_BITS = 56
"""A range lasts for as long as the time in an id fits below this bit: 49 days."""


@task("parsl-flux-bulk-first-jobid", ranks="0", after=["kvs"], before=["job-manager"])
def first_jobid(context: Any) -> None:
    """Leave the id behind which this instance's are to begin."""
    outer_job = int(JobID(os.environ["PARSL_FLUX_BULK_OUTER_JOB"]))
    number = (outer_job >> RANGE_BITS) + 1 + int(os.environ["PARSL_FLUX_BULK_TOKEN"])
    kvs = flux.kvs.KVSDir(context.handle)
    kvs["checkpoint.job-manager"] = {"version": 1, "max_jobid": number << RANGE_BITS}
    kvs.commit()
