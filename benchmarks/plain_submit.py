"""What people write without bulksubmit: submit every jobspec, then wait for each.

    python benchmarks/plain_submit.py DIRECTORY

Run inside a Flux instance. Prints how long it took, in seconds, and how many jobs failed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import flux
import flux.job


def main() -> None:
    began = time.perf_counter()
    handle = flux.Flux()
    ids: list[int] = []

    def submitted(future: Any) -> None:
        ids.append(future.get_id())

    for path in sorted(Path(sys.argv[1]).iterdir()):
        flux.job.submit_async(handle, path.read_text(), waitable=True).then(submitted)
    handle.reactor_run()
    failed = 0
    for job_id in ids:
        _, success, _ = flux.job.wait(handle, job_id)
        failed += not success
    print(time.perf_counter() - began, failed)


if __name__ == "__main__":
    main()
