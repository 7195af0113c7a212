"""Functions of tasks in the tests. Workers import this module, so it uses the standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from typing import Any


class Planned(Exception):
    """An ordinary exception."""


class Unreadable(Exception):
    """An exception that can be pickled and cannot be unpickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text, Unreadable.Bomb())

    class Bomb:
        def __reduce__(self) -> Any:
            return int, ("no number",)


# -- that succeed ------------------------------------------------------------------------------------


def double(x: Any) -> Any:
    return x * 2


def nothing() -> None:
    pass


def hold(how: str, seconds: float, note: str = "") -> str:
    """Take some time in a Python loop, in a call that can be interrupted at its end, or with the GIL."""
    try:
        deadline = time.monotonic() + seconds
        if how == "loop":
            while time.monotonic() < deadline:
                pass
        elif how == "sleep":
            time.sleep(seconds)
        else:
            ctypes.PyDLL(None).sleep(int(seconds))
    finally:
        if note:
            with open(note, "a") as file:
                file.write("cleaned up")
    return how


def whoami() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def environment(*names: str) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def cwd() -> str:
    return os.getcwd()


def modules(*names: str) -> list[str]:
    """Return which of these modules the worker has imported."""
    return [name for name in names if name in sys.modules]


def interpreter() -> str:
    return sys.executable


def affinity() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def size_of(data: bytes) -> int:
    return len(data)


def zeros(size: int) -> bytes:
    return bytes(size)


def with_place(value: Any) -> tuple[Any, str]:
    """Return a value, and the URI of the Flux instance that this task runs in."""
    return value, os.environ["PARSL_WORKER_FLUX_URI"]


def meet(directory: str, brokers: int, bound: float = 60.0, **_: Any) -> str:
    """Wait until tasks of `brokers` Flux instances have met in a directory; return the name of this one."""
    mine = os.environ["PARSL_WORKER_FLUX_URI"].removeprefix("local://").replace("/", "_")
    with open(os.path.join(directory, mine), "w"):
        pass
    deadline = time.monotonic() + bound
    while len(os.listdir(directory)) < brokers and time.monotonic() < deadline:
        time.sleep(0.02)
    return mine


def gpus_when_together(directory: str, others: int, bound: float = 60.0) -> str | None:
    """Return the visible GPUs, once `others` more tasks are running too."""
    append(os.path.join(directory, str(os.getpid())), "")
    deadline = time.monotonic() + bound
    while len(os.listdir(directory)) <= others:
        assert time.monotonic() < deadline, "the other tasks never ran at the same time"
        time.sleep(0.01)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def time_together(directory: str, count: int, bound: float) -> tuple[float, float]:
    """Wait until `count` tasks have begun; return when this one began and ended, by the machine's clock."""
    began = time.monotonic()
    append(os.path.join(directory, f"{os.getpid()} {began}"), "")
    while len(os.listdir(directory)) < count:
        assert time.monotonic() < began + bound, "the other tasks never ran at the same time"
        time.sleep(0.01)
    time.sleep(0.1)
    return began, time.monotonic()


def say(out: str, err: str) -> None:
    print(out)
    print(err, file=sys.stderr)


# -- that fail -----------------------------------------------------------------------------------


def fail(text: str) -> None:
    raise Planned(text)


def fail_with_cause(text: str) -> None:
    try:
        fail("the cause")
    except Planned as cause:
        raise ValueError(text) from cause


def fail_unreadably(text: str) -> None:
    raise Unreadable(text)


def unpicklable_result() -> Any:
    return (i for i in range(3))


def exit_process(status: int, text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)
    os._exit(status)


def sys_exit(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def segfault() -> None:
    ctypes.string_at(0)


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


# -- that take time, and record it ------------------------------------------------------------------------


def append(path: str, line: str) -> None:
    """Append a line in one piece, even if other processes append too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def mark(path: str, seconds: float = 0.0) -> int:
    """Append the pid to a file, sleep, and return the pid."""
    append(path, str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


def mark_number(path: str, number: int, seconds: float = 0.0) -> int:
    """Append a number and the pid to a file, sleep, and return the number."""
    append(path, f"{number} {os.getpid()}")
    if seconds:
        time.sleep(seconds)
    return number


def wait_for_file(path: str, bound: float = 60.0) -> bool:
    """Wait until a file exists."""
    deadline = time.monotonic() + bound
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return os.path.exists(path)


def tell_and_wait(told: str, path: str) -> bool:
    """Write the pid to a file, then wait until another file exists."""
    append(told, str(os.getpid()))
    return wait_for_file(path)


# -- on several ranks ------------------------------------------------------------------------------------


def rank(path: str) -> tuple[int, int]:
    """Append this rank to a file; return it and the number of ranks."""
    here = int(os.environ["FLUX_TASK_RANK"])
    append(path, str(here))
    return here, int(os.environ["FLUX_JOB_SIZE"])


def fail_on_rank(failing: int) -> int:
    here = int(os.environ["FLUX_TASK_RANK"])
    if here == failing:
        raise Planned(f"on {here}")
    return here


def exit_on_rank(failing: int, status: int) -> int:
    here = int(os.environ["FLUX_TASK_RANK"])
    if here == failing:
        os._exit(status)
    return here


def arrive_and_wait(mark: str, gate: str) -> None:
    """Make a file, and wait until another one is there."""
    open(mark, "w").close()
    wait_for_file(gate)
