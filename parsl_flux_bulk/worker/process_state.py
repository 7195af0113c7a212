"""Put a worker process back in order after each task.

What belongs to the whole process (working directory, environment, signal handlers, timers and so on) is
compared with how it was before the first task, and put back. What cannot be put back, such as a thread that
still runs, is reported, and the worker is replaced.

The cost is a few microseconds a task: cheap system calls are made unconditionally, and what only a module
can change is looked at only after a task imported that module.
"""

# ruff: noqa: SLF001 (the state that is put back is private to modules of the standard library)

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import _thread
import gc
import os
import resource
import sys
import time

# Bound here: quicker to look up, and out of reach of a task that replaces those of the modules.
from faulthandler import cancel_dump_traceback_later
from os import (
    dup2,
    getcwd,
    getgroups,
    getpgrp,
    getpid,
    getpriority,
    getresgid,
    getresuid,
    sched_getaffinity,
    umask,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

THREAD_GRACE = 0.05
"""Seconds that the threads of a task have to end after it."""

_SIGNALS = sorted(_signal.valid_signals())
_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
_STREAMS = ("stdin", "stdout", "stderr")
_WATCHED_MODULES = frozenset(("_locale", "asyncio.events", "decimal", "resource", "signal", "threading"))
_HOOKS = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")


def _directory() -> str:
    try:
        return getcwd()
    except OSError:
        return ""  # it was deleted


def _credentials() -> tuple[Any, ...]:
    return getresuid(), getresgid(), getgroups()


_IS_ROOT = os.geteuid() == 0
"""Whether tasks can change user and groups."""


def _read_fixed() -> tuple[Any, ...]:
    """Return what cannot be put back, or not by everybody: priority, process group, user, groups."""
    return getpriority(0, 0), getpgrp(), _credentials() if _IS_ROOT else ()


# New in Python 3.11, and in updates of 3.10.
_get_int_digits = getattr(sys, "get_int_max_str_digits", lambda: 0)
_set_int_digits = getattr(sys, "set_int_max_str_digits", lambda digits: None)


def _read_state() -> tuple[Any, ...]:
    """Return what can be compared at once: objects of `sys`, values, affinity, what is fixed, directory."""
    return (
        (
            sys.stdin,
            sys.stdout,
            sys.stderr,
            sys.excepthook,
            sys.displayhook,
            sys.unraisablehook,
            sys.breakpointhook,
        ),
        (
            sys.getrecursionlimit(),
            sys.getswitchinterval(),
            _socket.getdefaulttimeout(),
            sys.gettrace(),
            sys.getprofile(),
            gc.isenabled(),
            gc.get_threshold(),
            gc.get_debug(),
            _get_int_digits(),
        ),
        sched_getaffinity(0),
        _read_fixed(),
        # A changed root directory shows in the path of the working directory.
        _directory(),
    )


def _set_values(
    recursion: int,
    switch: float,
    timeout: float | None,
    trace: Any,
    profile: Any,
    enabled: bool,
    threshold: tuple[int, int, int],
    debug: int,
    digits: int,
) -> None:
    sys.setrecursionlimit(recursion)
    sys.setswitchinterval(switch)
    _socket.setdefaulttimeout(timeout)
    sys.settrace(trace)
    sys.setprofile(profile)
    (gc.enable if enabled else gc.disable)()
    gc.set_threshold(*threshold)
    gc.set_debug(debug)
    _set_int_digits(digits)


class ProcessState:
    """How a worker process was before its first task. The standard streams must be in place."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        try:
            self._directory_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            self._directory_fd = -1
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._streams = [os.dup(number) for number in range(3)]
        self._handlers = list(map(_signal.getsignal, _SIGNALS))
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._limits = list(map(resource.getrlimit, _LIMITS))
        for name in ("resource", "signal"):
            # A task that uses it imports it first, and so puts it here again.
            sys.modules.pop(name, None)
        self._environ, self._path = os.environ, sys.path
        self._state = _read_state()
        self.note_imports()

    def note_imports(self) -> None:
        """Take over what the modules of a function did when they were imported, since that happens once."""
        self._environment = dict(os.environb)
        self._path_entries = list(sys.path)
        self._import_hooks: Any = list(sys.meta_path), list(sys.path_hooks)
        self._threads = _thread._count()
        decimal = sys.modules.get("decimal")
        self._decimal: Any = decimal and decimal.getcontext().copy()
        asyncio = sys.modules.get("asyncio.events")
        self._policy: Any = getattr(asyncio, "_event_loop_policy", None)
        locale = sys.modules.get("_locale")
        self._locale = locale.setlocale(locale.LC_ALL) if locale else ""

    def restore(self) -> str:
        """Put everything back.

        Returns
        -------
        str
            What could not be put back, so that the process must not run another task; "" for nothing.
        """
        for _ in range(3):
            try:
                if getpid() != self._pid:
                    os._exit(0)  # the task forked, and this is the copy
                return self._restore()
            except BaseException:  # a signal handler of the task raised it, which is gone the next time
                continue
        return "its state"

    def _restore(self) -> str:
        modules = sys.modules
        if modules.get("sys") is not sys:
            return "the imported modules"
        watched = not modules.keys().isdisjoint(_WATCHED_MODULES)
        if watched and "signal" in modules:
            self._restore_signals()
        cancel_dump_traceback_later()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            closed = sys.stdin.closed
        except Exception:  # they are the task's own, or None, or closed
            closed = True
        stdin, stdout, stderr = self._streams
        dup2(stdin, 0)
        dup2(stdout, 1)
        dup2(stderr, 2)
        umask(self._umask)
        left = ""
        if (
            closed
            or os.environ is not self._environ
            or self._environ._data != self._environment  # type: ignore[attr-defined]
            or sys.path is not self._path
            or self._path != self._path_entries
            or len(sys.meta_path) < len(self._import_hooks[0])
            or len(sys.path_hooks) < len(self._import_hooks[1])
            or _read_state() != self._state
        ):
            left = self._restore_state()
        if watched:
            left = self._restore_modules() or left
        if _thread._count() > self._threads:
            left = self._left_threads() or left
        return left

    def _restore_state(self) -> str:
        """Put back what `_read_state` reads, the environment and ``sys.path``."""
        objects, values, affinity, fixed, directory = self._state
        self._restore_objects(objects)
        self._restore_environment()
        sys.path = self._path
        self._path[:] = self._path_entries
        hooks: Any
        for hooks, before in zip((sys.meta_path, sys.path_hooks), self._import_hooks, strict=True):
            # What came stays: a module such as six installs a hook when it is imported.
            hooks[:] = [*before, *(hook for hook in hooks if hook not in before)]
        _set_values(*values)
        if sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        if _read_fixed() != fixed:
            return "its priority, user, groups or process group"
        return self._restore_directory(directory)

    def _restore_signals(self) -> None:
        for timer in (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF):
            _signal.setitimer(timer, 0)
        if list(map(_signal.getsignal, _SIGNALS)) != self._handlers:
            for number, handler in zip(_SIGNALS, self._handlers, strict=True):
                if handler is not None and _signal.getsignal(number) != handler:
                    _signal.signal(number, handler)
        _signal.set_wakeup_fd(-1)
        if _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) != self._mask:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)

    def _restore_objects(self, before: tuple[Any, ...]) -> None:
        objects = list(before)
        for number, mode in enumerate("rww"):
            stream = objects[number]
            if stream is not None and stream.closed:
                objects[number] = open(  # noqa: SIM115
                    number, mode, encoding=stream.encoding, errors=stream.errors, closefd=False
                )
                setattr(sys, f"__{_STREAMS[number]}__", objects[number])
        for name, value in zip((*_STREAMS, *_HOOKS), objects, strict=True):
            setattr(sys, name, value)
        self._state = (tuple(objects), *self._state[1:])

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003 (the object that is in step with the process)
        zone = os.environb.get(b"TZ")
        for name in [name for name in os.environb if name not in self._environment]:
            del os.environb[name]
        for name, value in self._environment.items():
            if os.environb.get(name) != value:
                os.environb[name] = value
        if os.environb.get(b"TZ") != zone:
            time.tzset()

    def _restore_directory(self, directory: str) -> str:
        if _directory() == directory:
            return ""
        for place in (directory, self._directory_fd):
            try:
                os.chdir(place)
                if os.getcwd() == directory:
                    return ""
            except OSError:
                pass
        return "its working directory, or its root directory"

    def _restore_limits(self) -> str:
        for number, limits in zip(_LIMITS, self._limits, strict=True):
            if resource.getrlimit(number) != limits:
                try:
                    resource.setrlimit(number, limits)
                except (OSError, ValueError):
                    return "a hard limit"
        return ""

    def _restore_modules(self) -> str:
        modules = sys.modules
        left = self._restore_limits() if "resource" in modules else ""
        if "decimal" in modules:
            decimal = modules["decimal"]
            decimal.setcontext((self._decimal or decimal.DefaultContext).copy())
        if "threading" in modules:
            threading: Any = modules["threading"]
            threading.settrace(None)
            threading.setprofile(None)
            threading.excepthook = threading.__excepthook__
        if "_locale" in modules and self._locale:
            locale = modules["_locale"]
            if locale.setlocale(locale.LC_ALL) != self._locale:
                locale.setlocale(locale.LC_ALL, self._locale)
        if "asyncio.events" in modules:
            self._restore_event_loop(modules["asyncio.events"])
        return left

    def _restore_event_loop(self, events: Any) -> None:
        events._set_running_loop(None)
        policy: Any = getattr(events, "_event_loop_policy", None)
        local = getattr(policy, "_local", None)
        if local is not None:
            loop = getattr(local, "_loop", None)
            try:
                if loop is not None:
                    loop.close()
            except Exception:  # it runs, or its descriptors are closed already
                pass
            policy._local = type(local)()  # otherwise the next task could not get a loop by default
        events._event_loop_policy = self._policy
        for number in range(3):
            os.set_blocking(number, True)

    def _left_threads(self) -> str:
        deadline = 0.0
        while _thread._count() > self._threads:
            now = time.monotonic()
            deadline = deadline or now + THREAD_GRACE
            if now >= deadline:
                return "a thread that still runs"
            time.sleep(0.001)
        return ""
