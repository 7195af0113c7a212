"""Give an inner instance a range of job ids of its own; ``flux modprobe rc1`` runs this as it starts.

See flux-modprobe(1), and `instances.federation.inner_instances`. Flux's own Python runs this, from version
0.77 on, which reads ``FLUX_MODPROBE_PATH_APPEND``; nothing of this package is imported. A job id (RFC 19)
begins with the milliseconds since the instance's start, continued from the largest id that the job manager
finds when it is loaded. Instances with different such ids never issue the same one.
"""

from __future__ import annotations

import os
from typing import Any

import flux.kvs
from flux.job import JobID
from flux.modprobe import task

RANGE_BITS = 56
"""Lowest bit of a range's number: an instance leaves its range after 49 days."""


@task("parsl-flux-bulk-first-jobid", ranks="0", after=["kvs"], before=["job-manager"])
def first_jobid(context: Any) -> None:
    """Store the id after which this instance's ids begin."""
    outer_job = int(JobID(os.environ["PARSL_FLUX_BULK_OUTER_JOB"]))
    number = (outer_job >> RANGE_BITS) + 1 + int(os.environ["PARSL_FLUX_BULK_TOKEN"])
    kvs = flux.kvs.KVSDir(context.handle)
    kvs["checkpoint.job-manager"] = {"version": 1, "max_jobid": number << RANGE_BITS}
    kvs.commit()
