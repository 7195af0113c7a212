"""Submit every jobspec of a directory and wait for each, as a user without bulksubmit would.

    python benchmarks/plain_submit.py DIRECTORY

Runs inside a Flux instance. Prints the seconds that this took, and the number of failed jobs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import flux
import flux.job


def main() -> None:
    """Submit, wait, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    directory: Path = parser.parse_args().directory
    began = time.perf_counter()
    handle = flux.Flux()
    ids: list[int] = []

    def submitted(future: Any) -> None:
        ids.append(future.get_id())

    for path in sorted(directory.iterdir()):
        flux.job.submit_async(handle, path.read_text(), waitable=True).then(submitted)
    handle.reactor_run()
    failed = 0
    for job_id in ids:
        _, success, _ = flux.job.wait(handle, job_id)
        failed += not success
    print(time.perf_counter() - began, failed)


if __name__ == "__main__":
    main()
