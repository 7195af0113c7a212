"""Measure the memory of an own broker, and of the process that submits, over many short jobs.

    python benchmarks/memory.py [--jobs N] [--every N]

``BulkSubmitter`` runs N jobs ``sleep 0`` (default: 20,000) in one Flux instance, which starts with the
benchmark. Every 1,000 jobs, a line has the resident memory of the broker and of this process.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flux_instance import flux_missing

from parsl_flux_bulk import BulkSubmitter
from parsl_flux_bulk.instances.flux import FluxInstance


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def broker_of(pid: int) -> int:
    """Return the broker that is a child of a process."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = entry.read_text().rpartition(")")
        if "flux-broker" in name and int(rest.split()[1]) == pid:
            return int(entry.parent.name)
    raise RuntimeError("no broker has started")


def main() -> int:
    """Run the jobs and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=20_000, help="default: 20000")
    parser.add_argument("--every", type=int, default=1000, help="jobs between two lines (default: 1000)")
    arguments = parser.parse_args()
    if missing := flux_missing():
        print(missing, file=sys.stderr)
        return 2
    instance = FluxInstance.own()
    print("  jobs  jobs/s  broker MB  own MB")
    began = time.perf_counter()
    with BulkSubmitter(instance, keep_ended=False) as bulk:
        broker = broker_of(os.getpid())
        for ended in range(arguments.every, arguments.jobs + 1, arguments.every):
            futures = [bulk.submit_command(["sleep", "0"]) for _ in range(arguments.every)]
            for future in futures:
                future.result()
            rate = ended / (time.perf_counter() - began)
            print(f"{ended:6} {rate:7.1f} {resident(broker):10.1f} {resident(os.getpid()):7.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
