"""Compare the channel of a relayed block with that of a direct instance: round trip, rate and volume.

    python benchmarks/relay.py [local|flux]...

A job answers each message with the same message. Printed are medians of three alternating runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "contract")]

from relay_service import BlockInstance  # noqa: E402
from seam import Seam, peer_job, shell  # noqa: E402

from parsl_flux_bulk.instances.base import Instance  # noqa: E402
from parsl_flux_bulk.instances.local.client import LocalInstance  # noqa: E402

ECHO = """
say(b"ready")
while (message := hear()) != b"bye":
    say(message)
"""
ROUND_TRIPS = 1000
MESSAGES = 20_000
WINDOW = 200
MEGABYTES = 100


def direct_flux() -> Instance:
    from parsl_flux_bulk.instances.flux.instance import FluxInstance

    return FluxInstance.own()


WAYS: dict[str, tuple[Callable[[], Instance], Callable[[], Instance]]] = {
    "local": (LocalInstance, lambda: BlockInstance()),
    "flux": (direct_flux, lambda: BlockInstance(flux=True)),
}


def measure(make: Callable[[], Instance]) -> dict[str, float]:
    """Measure one instance; return its figures by their names."""
    instance = make()
    began = time.perf_counter()
    instance.start()
    figures = {"start s": time.perf_counter() - began}
    try:
        seam = Seam(instance, instance.connect(), instance.completion(), "")
        with tempfile.TemporaryDirectory() as directory:
            job_id = seam.submit(peer_job(ECHO, Path(directory), seam.completion))[0]
            seam.pump(lambda: bool(seam.messages))
            peer, _ = seam.messages.pop()
            send, poll = seam.completion.send, seam.completion.poll

            def receive(count: int) -> None:
                while count > 0:
                    count -= len(poll(30))

            times = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                send(peer, b"x" * 100)
                receive(1)
                times.append(time.perf_counter() - began)
            figures["round trip ms"] = statistics.median(times) * 1000
            figures["slowest of 20 ms"] = statistics.quantiles(times, n=20)[-1] * 1000

            began = time.perf_counter()
            sent = got = 0
            while got < MESSAGES:
                while sent < MESSAGES and sent - got < WINDOW:
                    send(peer, b"x" * 100)
                    sent += 1
                got += len(poll(30))
            figures["messages/s"] = MESSAGES / (time.perf_counter() - began)

            body = os.urandom(1 << 20) * MEGABYTES
            began = time.perf_counter()
            send(peer, body)
            receive(1)
            figures["MB/s there and back"] = 2 * MEGABYTES / (time.perf_counter() - began)
            send(peer, b"bye")
            seam.wait([job_id])

        job = shell("exit 0")
        began = time.perf_counter()
        seam.run(*[job] * 60)
        figures["jobs/s"] = 60 / (time.perf_counter() - began)
        seam.completion.close()
        seam.connection.close()
    finally:
        instance.close()
    return figures


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "instances", nargs="*", choices=list(WAYS), default=list(WAYS), help="default: all of them"
    )
    for name in parser.parse_args().instances:
        direct, relayed = [], []
        for _ in range(3):
            direct.append(measure(WAYS[name][0]))
            relayed.append(measure(WAYS[name][1]))
        print(f"{name:22}{'direct':>10}{'relayed':>10}{'ratio':>8}")
        for what in direct[0]:
            a, b = (statistics.median(run[what] for run in runs) for runs in (direct, relayed))
            print(f"  {what:20}{a:10.2f}{b:10.2f}{b / a:8.2f}")


if __name__ == "__main__":
    main()
