"""Run N jobs `sleep 0` with HyperQueue on this machine's cores, for benchmarks/bulksubmit.py.

python benchmarks/hyperqueue_submit.py N        # pip install hyperqueue
"""

from __future__ import annotations

import os
import sys
import tempfile

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def main() -> int:
    """Start a server and a worker, run one HyperQueue job of N tasks, and print N and 0."""
    count = int(sys.argv[1])
    with (
        tempfile.TemporaryDirectory(prefix="hyperqueue-") as directory,
        LocalCluster(directory) as cluster,
    ):
        cluster.start_worker(WorkerConfig(cores=len(os.sched_getaffinity(0))))
        client = cluster.client()
        job = Job()
        for _ in range(count):
            job.program(["sleep", "0"], stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])
    print(f"ran {count} 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
