"""Helpers of all test suites: bounded waits, processes, Flux instances, leaks.

Imported as ``from helpers import ...``, because ``conftest.py`` puts ``tests/`` on ``sys.path``. It does not
import the package under test.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parent.parent
BOUND = 60.0
"""Seconds to wait for an event that takes one or two; the machine may be busy."""
LONG_LIVED: set[int] = set()
"""Processes that fixtures own; the leak check ignores them and their descendants."""
RUNNING_INSTANCES: set[str] = set()
"""URIs of the Flux instances that tests have started and that run."""


FLUX_JOB_STATE_INACTIVE = 64

# -- waiting -----------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], T], bound: float = BOUND, what: str = "") -> T:
    """Call `condition` until it returns a true value, and return that value.

    Parameters
    ----------
    bound : float
        Seconds after which the test fails with `what`.
    """
    deadline = time.monotonic() + bound
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {bound} s: {what or condition}; last value {value!r}")
        time.sleep(0.005)


def wait_lines(path: Path, count: int, bound: float = BOUND, what: str = "") -> list[str]:
    """Wait until a file to which other processes append has so many whole lines; return its lines."""

    def lines() -> list[str]:
        text = path.read_text() if path.exists() else ""
        return text.splitlines() if text.count("\n") >= count else []

    return wait_until(lines, bound, what or f"{count} lines in {path}")


def wait_event(event: threading.Event, bound: float = BOUND, what: str = "an event") -> None:
    """Wait for a :class:`threading.Event`; the test fails if it is not set within `bound` seconds."""
    assert event.wait(bound), f"not within {bound} s: {what}"


def cpu_unit() -> float:
    """Return the CPU seconds of one step of plain Python, on this machine now.

    Bounds of speed are multiples of it, so that they hold on a slow machine, too. It is some 0.1 µs.
    """
    table = {}
    began = time.process_time()
    for number in range(100_000):
        table[number & 1023] = number, str(number)
    return (time.process_time() - began) / 100_000


# -- processes ---------------------------------------------------------------------------------------


def process_table() -> dict[int, tuple[int, str]]:
    """Return all processes of this machine: pid -> (pid of its parent, state letter of proc(5))."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # Not with pathlib, which is slower: each test reads these files twice.
                fd = os.open(f"/proc/{entry}/stat", os.O_RDONLY)
            except (FileNotFoundError, ProcessLookupError):
                continue
            try:
                fields = os.read(fd, 4096).rpartition(b")")[2].split(None, 2)
            except ProcessLookupError:
                continue
            finally:
                os.close(fd)
            table[int(entry)] = (int(fields[1]), fields[0].decode())
    return table


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def descendants(*pids: int, table: dict[int, tuple[int, str]] | None = None) -> set[int]:
    """Return the pids of all running descendants of processes, in a new `process_table` or in this one."""
    table = table or process_table()
    children: dict[int, list[int]] = {}
    for child, (parent, _) in table.items():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    unseen = list(pids)
    while unseen:
        for child in children.get(unseen.pop(), ()):
            unseen.append(child)
            if table[child][1] not in "ZX":
                found.add(child)
    return found


def kill(pid: int) -> None:
    """Send SIGKILL to a process that may just have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_gone(pids: Collection[int], bound: float = BOUND) -> None:
    """Wait until none of `pids` runs; the test fails with the commands of those that still run."""

    def remaining() -> list[str]:
        return [f"{pid}: {command_of(pid)}" for pid in pids if is_running(pid)]

    try:
        wait_until(lambda: not remaining(), bound)
    except AssertionError:
        raise AssertionError(f"still running after {bound} s: {remaining()}") from None


def command_of(pid: int) -> str:
    """Return the command line of a process, or "" if it has none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


@contextmanager
def script(source: str, directory: Path, **popen: object) -> Iterator[subprocess.Popen[str]]:
    """Run Python source as a user's script, in a session of its own; kill it at the end of the block.

    Its stdin, stdout and stderr are text pipes. It can import what this process can import.
    """
    path = directory / "user_script.py"
    path.write_text(textwrap.dedent(source))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or str(PROJECT)}
    arguments = {"cwd": directory, "env": environment, "start_new_session": True, **popen}
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        **arguments,  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run_script(source: str, directory: Path, bound: float = 90.0) -> subprocess.CompletedProcess[str]:
    """Run Python source as a user's script to its end; the test fails after `bound` seconds."""
    with script(source, directory) as process:
        try:
            out, err = process.communicate(timeout=bound)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"script did not end in {bound} s; stdout {out!r}, stderr {err!r}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def in_a_fork(check: Callable[[], object], bound: float = BOUND) -> str:
    """Call a function in a fork of this process; return what it raised."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        said = "nothing"
        try:
            check()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        ready, _, _ = select.select([pipe], [], [], bound)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said or "it hung"


def run_documentation(page: str, executor: str, directory: Path, then: str = "") -> str:
    """Run the Python examples of a page in ``docs/``, then `then`, as one script; return its output.

    Parameters
    ----------
    executor : str
        Source of the arguments of the FluxBulkExecutor that Parsl is loaded with.
    """
    text = (PROJECT / "docs" / page).read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    before = f"""
import parsl
from parsl_flux_bulk import FluxBulkExecutor
kernel = parsl.load(parsl.Config(executors=[FluxBulkExecutor({executor})]))
"""
    done = run_script("\n".join([before, *examples, then, "kernel.cleanup()\n"]), directory, bound=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- Flux --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def flux_missing() -> str:
    """Return why tests that need Flux cannot run here, or "" if they can."""
    if shutil.which("flux") is None:
        return "no `flux` command on PATH"
    for module in ("flux", "yaml", "ply"):  # flux-python needs the last two and does not name them
        if importlib.util.find_spec(module) is None:
            return f"no Python module `{module}` (pip install flux-python==VERSION ply pyyaml)"
    try:
        version = subprocess.run(["flux", "version"], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"`flux version` does not work: {error}"
    return "" if "commands" in version.stdout else "`flux version` does not print the version of its commands"


@contextmanager
def flux_instance(*options: str) -> Iterator[str]:
    """Run ``flux start`` with `options` for the time of a ``with`` block, and yield its URI."""
    process = subprocess.Popen(
        ["flux", "start", *options, "sh", "-c", "echo $FLUX_URI; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    LONG_LIVED.add(process.pid)
    uri = ""
    try:
        uri = process.stdout.readline().strip()
        assert uri, f"flux start ended with {process.wait(10)} and gave no URI"
        RUNNING_INSTANCES.add(uri)
        yield uri
    finally:
        RUNNING_INSTANCES.discard(uri)
        process.stdin.close()
        try:
            process.wait(BOUND)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        LONG_LIVED.discard(process.pid)


def flux(uri: str, *arguments: str, bound: float = 60.0) -> str:
    """Run a command of Flux in an instance; return its output."""
    done = subprocess.run(
        ["flux", *arguments],
        env={**os.environ, "FLUX_URI": uri}, capture_output=True, text=True, timeout=bound,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def active_jobs(uri: str) -> list[str]:
    """Return the ids and names of the active jobs of an instance."""
    return flux(uri, "jobs", "-no", "{id} {name}").splitlines()


def active_job_ids(uri: str) -> set[int]:
    """Return the ids of the active jobs of an instance in one round trip; `active_jobs` runs a command."""
    try:
        jobs = _handle(uri).rpc("job-manager.list", {"max_entries": 0, "attrs": []}).get()["jobs"]
    except OSError:  # a test has killed the instance
        return set()
    # A waitable job is listed until somebody has waited for it.
    return {job["id"] for job in jobs if job["state"] != FLUX_JOB_STATE_INACTIVE}


def cancel_jobs(uri: str, kept_ids: Collection[int], kept_labels: Collection[str], bound: float) -> list[str]:
    """Wait for jobs to end, cancel those that do not, and return their ids and names.

    Parameters
    ----------
    kept_ids, kept_labels : collection
        Jobs, and executors whose worker jobs, to leave alone.
    bound : float
        Seconds to wait before jobs are canceled.
    """
    names: dict[int, str] = {}

    def left() -> set[int]:
        return {
            job_id
            for job_id in active_job_ids(uri).difference(kept_ids)
            if _label_of(names.setdefault(job_id, _name_of_job(uri, job_id))) not in kept_labels
        }

    deadline = time.monotonic() + bound
    while (ids := left()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if ids:
        subprocess.run(["flux", "cancel", *map(str, ids)], env={**os.environ, "FLUX_URI": uri}, timeout=60)
        wait_until(lambda: not left(), 30.0, f"the end of canceled jobs {ids}")
    return [f"{uri}: job {job_id} {names[job_id]}" for job_id in ids]


@functools.lru_cache(maxsize=8)
def _handle(uri: str) -> Any:
    import flux

    return flux.Flux(uri)


def _name_of_job(uri: str, job_id: int) -> str:
    payload = {"id": job_id, "attrs": ["name"]}
    try:
        return str(_handle(uri).rpc("job-list.list-id", payload).get()["job"]["name"])
    except OSError:
        return ""


def _label_of(job_name: str) -> str:
    """Return the label of the executor whose worker job has this name; "" if it is another job."""
    return job_name.rpartition(".flux-bulk-")[0]


# -- leaks -------------------------------------------------------------------------------------------


def own_threads() -> dict[int, threading.Thread]:
    """Return the running threads of this process."""
    return {thread.ident: thread for thread in threading.enumerate() if thread.ident is not None}


def own_processes() -> dict[int, str]:
    """Return the running descendants of this process that no fixture owns: pid -> command line."""
    table = process_table()
    owned = LONG_LIVED | descendants(*LONG_LIVED, table=table)
    mine = descendants(os.getpid(), table=table) - owned
    found = {pid: command_of(pid) for pid in mine if guarded_by(pid) not in owned}
    # multiprocessing starts its resource tracker once, and keeps it.
    return {
        pid: command for pid, command in found.items() if "multiprocessing.resource_tracker" not in command
    }


def guarded_by(pid: int) -> int:
    """Return the process that a guard of `worker.lifeline` guards; 0 for any other process."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return 0
    return int(name.removeprefix("guard-")) if name.startswith("guard-") else 0


def stack_of(thread: threading.Thread) -> str:
    """Return the name and the current stack of a thread, as text."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame else "  (ended)\n"
    return f"thread {thread.name!r}:\n{stack}"
