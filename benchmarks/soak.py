"""Run a mix of tasks for a long time while seeded random faults happen, and check what the executor promises.

::

    python benchmarks/soak.py --minutes 30 --seed 1 --instance flux
    python benchmarks/soak.py --minutes 2 --instance local --without callback disk

Tasks: python apps (short, long, with big arguments and results; some raise, exit, call sys.exit, are
canceled, write to a full disk), bash apps in workers and as jobs, python apps as jobs and on the two ranks
of a job.

Faults, every ``--every`` seconds: SIGKILL of a worker, a manager, a rank or a flux-shell; or SIGSTOP of one
of them, and SIGCONT some seconds later. With ``--instance brokers``, which is four brokers of one Flux
instance, a broker is killed in each session. A session lasts ``--session`` minutes and has an instance and
an executor of its own. About every second session ends with the loss of the whole instance, amid load.

Names for ``--without``: worker, manager, rank, shell, stop, broker, instance (faults); callback (one task in
a hundred has a callback that raises SystemExit); or kinds of tasks, where bash, cancel and disk (output on a
full disk) stand for every kind whose name begins so.

Promises, checked after the load of each minute and at the end:

* every future ends within ``--bound`` seconds, with the right outcome or with an error that names the task;
* no task runs twice, and no lost or canceled task runs on;
* memory, file descriptors and threads of this process are flat;
* shutdown is bounded, and leaves no process and no file in TMPDIR.

A line is printed each minute, and a row for a table at the end. The exit status is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parsl
from faults import Processes, Promises, resident, run_directory
from flux_instance import flux_instance
from soak_load import ENDS, FAULTS, KINDS, ONCE, RIGHT, Load

from parsl_flux_bulk import FluxBulkExecutor

FLAT = "memory, file descriptors and threads are flat"
SHUT_DOWN = "shutdown is bounded"
NOTHING_LEFT = "no process and no file is left behind"

LOAD_SECONDS = 50.0
"""Seconds of load in a minute; the rest is for the futures to end and for the checks."""

SHUTDOWN_BOUND = 60.0
M_MMAP_THRESHOLD = -3
"""From malloc.h."""

MEMORY_BOUND = 20e6
"""Bytes by which this process may grow from the end of the second minute on."""

DESCRIPTOR_BOUND = 10
"""File descriptors, and threads, by which this process may grow from the end of the second minute on."""


class Faults(threading.Thread):
    """Kills, stops and continues random processes of the run."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(name="faults", daemon=True)
        self.processes = Processes()
        self.counts: Counter[str] = Counter()
        self.active = threading.Event()
        self._random = random.Random(options.seed)
        self._every: float = options.every
        self._stopped: list[tuple[float, Any]] = []
        weights = {"worker": 8, "manager": 2, "rank": 1, "shell": 1}
        self._weights = {kind: weight for kind, weight in weights.items() if kind not in options.without}
        self._stop_share = 0.0 if "stop" in options.without else 0.3
        self._lock = threading.Lock()

    def run(self) -> None:
        """Cause a fault every so often while `active` is set."""
        while self._weights:
            self.active.wait()
            time.sleep(self._every)
            with self._lock:
                if self.active.is_set():
                    self._resume(time.monotonic())
                    self._cause()

    def pause(self) -> None:
        """Cause no more faults; continue what is stopped."""
        self.active.clear()
        with self._lock:
            self._resume(float("inf"))

    def kill_broker(self) -> None:
        """Kill a broker that is not the first of its instance."""
        followers = [
            process for process in self.processes.find("broker") if "broker-0" not in process.command[:14]
        ]
        if followers:
            self.counts["broker"] += self.processes.send(self._random.choice(followers), signal.SIGKILL)

    def kill_instance(self) -> None:
        """Kill every broker, or the embedded instance's server."""
        for process in self.processes.find("broker", "server"):
            self.processes.send(process, signal.SIGKILL)
        self.counts["instance"] += 1

    def _cause(self) -> None:
        kind = self._random.choices(list(self._weights), list(self._weights.values()))[0]
        found = self.processes.find(kind)
        if not found:
            return
        process = self._random.choice(found)
        if self._random.random() < self._stop_share:
            if self.processes.send(process, signal.SIGSTOP):
                self._stopped.append((time.monotonic() + self._random.uniform(1, 5), process))
                self.counts["stop"] += 1
        else:
            self.counts[kind] += self.processes.send(process, signal.SIGKILL)

    def _resume(self, now: float) -> None:
        for due, process in list(self._stopped):
            if due <= now:
                self.processes.send(process, signal.SIGCONT)
                self._stopped.remove((due, process))


class Soak:
    """The sessions of a run."""

    def __init__(self, options: argparse.Namespace, base: Path) -> None:
        self.promises = Promises()
        self._options = options
        self._base = base
        self._load = Load(options, base, self.promises)
        self._faults = Faults(options)
        self._random = random.Random(options.seed)
        self._minute = 0
        self._longest_drain = 0.0
        self._samples: list[tuple[int, int, int]] = []

    def run(self) -> int:
        """Run sessions until the time is over; return the exit status."""
        self._faults.start()
        while self._minute < self._options.minutes:
            self._session(min(self._options.session, self._options.minutes - self._minute))
        self._summary()
        return self.promises.summary()

    def _session(self, minutes: int) -> None:
        self._load.may_lose_instance = False
        with self._instance() as instance:
            config = parsl.Config(
                executors=[FluxBulkExecutor(instance=instance)],
                run_dir="parsl",
                initialize_logging=False,
                strategy="none",
            )
            kernel = parsl.load(config)
            broken_minute = self._random.randrange(minutes)
            for minute in range(minutes):
                if not self._one_minute(minute == broken_minute):
                    break
            else:
                if "instance" not in self._options.without and self._random.random() < 0.5:
                    self._lose_instance()
            self._shut_down(kernel)
            left = self._faults.processes.left(("worker", "manager", "rank", "shell"))
            self.promises.check(not left, NOTHING_LEFT, left)
        left = self._faults.processes.left()
        self.promises.check(not left, NOTHING_LEFT, left)
        for process in left:
            self._faults.processes.send(process, signal.SIGKILL)
        files = [str(path.relative_to(self._base)) for path in (self._base / "tmp").rglob("*")]
        # A broker that was killed cannot remove its run directory.
        if not (self._load.may_lose_instance or self._faults.counts["broker"]):
            self.promises.check(not files, NOTHING_LEFT, files)

    @contextlib.contextmanager
    def _instance(self) -> Iterator[str]:
        if self._options.instance != "brokers":
            yield self._options.instance
            return
        with flux_instance(0, "-s4", "--test-exit-mode=leader") as uri:
            yield uri

    def _one_minute(self, loses_broker: bool) -> bool:
        began, before = time.monotonic(), (self._load.submitted, self._load.right, +self._load.lost)
        self._minute += 1
        loses_broker &= self._options.instance == "brokers" and "broker" not in self._options.without
        at = began + LOAD_SECONDS * self._random.uniform(0.2, 0.8) if loses_broker else None
        faults = +self._faults.counts
        self._faults.active.set()
        self._load.run(began + LOAD_SECONDS, at, self._faults.kill_broker)
        self._faults.pause()
        drained = self._load.drain()
        self._load.check_records()
        self._longest_drain = max(self._longest_drain, drained)
        gc.collect()
        # Give free memory back, or the big arguments of the load decide what is resident.
        ctypes.CDLL(None).malloc_trim(0)
        sample = (resident(), len(os.listdir("/proc/self/fd")), threading.active_count())
        self._samples.append(sample)
        print(
            f"minute {self._minute}: {self._load.submitted - before[0]} tasks, "
            f"{self._load.right - before[1]} right, lost {_words(self._load.lost - before[2])}; "
            f"faults {_words(self._faults.counts - faults)}; drained in {drained:.1f} s; "
            f"{sample[0] / 1e6:.1f} MB, {sample[1]} descriptors, {sample[2]} threads",
            flush=True,
        )
        return not self._load.pending

    def _lose_instance(self) -> None:
        self._load.may_lose_instance = True
        self._load.run(time.monotonic() + 2)
        self._faults.kill_instance()
        self._load.drain()
        self._load.check_records()

    def _shut_down(self, kernel: Any) -> None:
        thread = threading.Thread(target=kernel.cleanup, daemon=True)
        thread.start()
        thread.join(SHUTDOWN_BOUND)
        parsl.clear()
        if thread.is_alive():
            self.promises.check(False, SHUT_DOWN, f"not done after {SHUTDOWN_BOUND:g} s")
            self._summary()
            status = self.promises.summary()
            sys.stdout.flush()
            for process in self._faults.processes.find():
                self._faults.processes.send(process, signal.SIGKILL)
            os._exit(status)
        self._load.drain()  # shutdown ends every future

    def _summary(self) -> None:
        load, first, last = self._load, self._samples[:2][-1], self._samples[-1]
        grown = [after - before for before, after in zip(first, last, strict=True)]
        flat = grown[0] <= MEMORY_BOUND and grown[1] <= DESCRIPTOR_BOUND and grown[2] <= DESCRIPTOR_BOUND
        self.promises.check(flat, FLAT, self._samples)
        broken = self.promises.broken
        cells = {
            "instance": self._options.instance,
            "minutes": self._minute,
            "seed": self._options.seed,
            "tasks": load.submitted,
            "right": load.right,
            "lost, with an error": _words(load.lost),
            "faults": _words(self._faults.counts),
            "longest drain (s)": f"{self._longest_drain:.1f}",
            "not ended / wrong / twice / left behind": " / ".join(
                str(broken[promise]) for promise in (ENDS, RIGHT, ONCE, NOTHING_LEFT)
            ),
            "memory (MB)": f"{first[0] / 1e6:.0f} to {last[0] / 1e6:.0f}",
            "descriptors": f"{first[1]} to {last[1]}",
        }
        for row in (cells, ["---"] * len(cells), cells.values()):
            print(f"| {' | '.join(map(str, row))} |")


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, default=30, help="minutes of load (default 30)")
    parser.add_argument("--seed", type=int, default=1, help="seed of tasks and faults (default 1)")
    parser.add_argument("--instance", choices=["flux", "local", "brokers"], default="flux")
    parser.add_argument("--session", type=int, default=5, help="minutes until the next instance (default 5)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between faults (default 1)")
    parser.add_argument("--window", type=int, default=60, help="number of outstanding tasks (default 60)")
    parser.add_argument(
        "--bound", type=float, default=60.0, help="seconds for all futures to end (default 60)"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help="faults or tasks to leave out"
    )
    parser.add_argument("--keep", action="store_true", help="keep the files of the run")
    options = parser.parse_args()
    known = {*FAULTS, "stop", "callback", *KINDS}
    unknown = set(options.without) - known
    if unknown:
        parser.error(f"--without: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
    # Otherwise the C library keeps the big arguments of the load once it has seen some, in heaps with holes.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 << 10)
    with run_directory(options.keep) as base:
        return Soak(options, base).run()


if __name__ == "__main__":
    sys.exit(main())
