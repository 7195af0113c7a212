"""What ``worker_kills.py`` and ``soak.py`` share: processes of a run, records of tasks, broken promises."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MARK = "FAULT_RUN"
"""Environment variable that every process of a run inherits."""

WORKER_PROGRAM = "parsl_flux_bulk/worker/main.py"
SHOWN = 5
"""Cases of one broken promise that are printed; further cases are counted."""


# -- records -----------------------------------------------------------------------------------------


class Records:
    """Runs of the tasks, read from the files that the tasks wrote.

    Attributes
    ----------
    starts : Counter
        Number of runs by (task, rank).
    ends : set
        The tasks that ran to their end.
    """

    def __init__(self, directory: Path) -> None:
        self.starts: Counter[tuple[int, int]] = Counter()
        self.ends: set[int] = set()
        self._directory = directory
        self._read: defaultdict[Path, int] = defaultdict(int)
        self._last: dict[Path, bytes] = {}

    def update(self) -> None:
        """Read what was written since the last call."""
        for path in self._directory.iterdir():
            with path.open("rb") as file:
                file.seek(self._read[path])
                written = file.read()
            whole = written[: written.rfind(b"\n") + 1]
            self._read[path] += len(whole)
            for line in whole.splitlines():
                self._last[path] = line
                event, number, rank = line.split()
                if event == b"start":
                    self.starts[int(number), int(rank)] += 1
                else:
                    self.ends.add(int(number))

    def running(self) -> dict[int, int]:
        """Return the tasks that run now, and the process of each."""
        found = {}
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for path, line in self._last.items():
            event, number, _ = line.split()
            pid = int(path.name.rpartition("-")[2])
            if event == b"start" and (stat := _stat(pid)) is not None:
                # Another process may have the pid by now.
                process_started = booted + stat[1] / os.sysconf("SC_CLK_TCK")
                if process_started < path.stat().st_mtime + 0.05:
                    found[int(number)] = pid
        return found


# -- processes ---------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A process of this run; `kind` is one of worker, manager, rank, shell, broker, server and other."""

    pid: int
    started: int
    kind: str
    command: str


class Processes:
    """The processes that inherited this run's mark."""

    def __init__(self) -> None:
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        os.environ[name] = value
        self._foreign: dict[int, int] = {}

    def find(self, *kinds: str) -> list[Process]:
        """Return the running processes, of all kinds unless some are named."""
        stats = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (stat := _stat(int(entry))) is not None:
                stats[int(entry)] = stat
        commands = {pid: _command(pid) for pid, stat in stats.items() if self._is_own(pid, stat[1])}
        workers = {pid for pid, command in commands.items() if WORKER_PROGRAM in command}
        parents = {stats[pid][0] for pid in workers}
        found = []
        for pid, command in commands.items():
            parent, started, name, state = stats[pid]
            if pid in workers:
                # A fork that is about to become a command still looks like the worker that forked it.
                is_fork = parent in workers and stats[parent][0] in workers
                kind = "worker" if parent in workers else "manager" if pid in parents else "rank"
                kind = "other" if is_fork else kind
            elif name == "flux-shell":
                kind = "shell"
            elif name.startswith("flux-broker"):
                kind = "broker"
            else:
                kind = "server" if "parsl_flux_bulk" in command and "server" in command else "other"
            if not kinds or kind in kinds:
                found.append(
                    Process(pid, started, kind, f"{name} (state {state}, parent {parent}): {command[:160]}")
                )
        return sorted(found)

    def send(self, process: Process, number: signal.Signals) -> bool:
        """Send a signal, unless the process has ended and its pid may belong to another."""
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:
            return False
        try:
            stat = _stat(process.pid)
            if stat is None or stat[1] != process.started:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def left(self, kinds: tuple[str, ...] = (), bound: float = 15.0) -> list[Process]:
        """Return the processes that still run after `bound` seconds."""
        deadline = time.monotonic() + bound
        while (found := self.find(*kinds)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _is_own(self, pid: int, started: int) -> bool:
        if self._foreign.get(pid) == started:
            return False
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        if self._mark.encode() in environment:
            return True
        if environment:  # empty while a program is loaded
            self._foreign[pid] = started
        return False


def _stat(pid: int) -> tuple[int, int, str, str] | None:
    """Return parent, start time in clock ticks, name and state of a process that runs, as in proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    if fields[0] in "ZX":
        return None
    return int(fields[1]), int(fields[19]), head.partition("(")[2], fields[0]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def resident() -> int:
    """Bytes of this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- a run -------------------------------------------------------------------------------------------


class Promises:
    """Promises that were broken, and how often."""

    def __init__(self) -> None:
        self.broken: Counter[str] = Counter()

    def check(self, kept: bool, promise: str, seen: object) -> None:
        """Print what was seen if a promise was not kept."""
        if not kept:
            self.broken[promise] += 1
            if self.broken[promise] <= SHOWN:
                print(f"BROKEN: {promise}: {str(seen)[:600]}", flush=True)

    def summary(self) -> int:
        """Print the broken promises; return the exit status."""
        for promise, times in self.broken.items():
            print(f"BROKEN {times} times: {promise}")
        if not self.broken:
            print("every promise kept")
        return int(bool(self.broken))


_TASK_IN_ERROR = re.compile(r"\b(\w+) \(task (\d+)\)")


def task_in(error: BaseException) -> tuple[str, int] | None:
    """Return the function and the number of the task that an error names, or None."""
    found = _TASK_IN_ERROR.search(str(error))
    return (found[1], int(found[2])) if found else None


@contextlib.contextmanager
def run_directory(keep: bool) -> Iterator[Path]:
    """Make a directory with ``tmp`` as TMPDIR, ``records``, and ``run`` as the current directory.

    Parameters
    ----------
    keep : bool
        Do not remove the directory at the end.
    """
    base = Path(tempfile.mkdtemp(prefix="faults-"))
    for name in ("tmp", "records", "run"):
        (base / name).mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(base / "tmp")
    os.environ.pop("FLUX_URI", None)
    # Flux's commands and modules find their own Python; jobs find the interpreter's commands.
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    os.chdir(base / "run")
    try:
        yield base
    finally:
        os.chdir("/")
        if keep:
            print(f"files of the run are in {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
