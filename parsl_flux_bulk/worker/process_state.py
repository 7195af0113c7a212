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
import contextvars
import gc
import os
import resource
import sys
import time

# Bound here: quicker to look up, and out of reach of a task that replaces those of the modules.
from faulthandler import cancel_dump_traceback_later
from os import dup2, getcwd, getpid, getpriority, getresuid, sched_getaffinity, umask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

THREAD_GRACE = 0.05
"""Seconds that the threads of a task have to end after it."""

_SIGNALS = sorted(_signal.valid_signals())
_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
_STREAMS = ("stdin", "stdout", "stderr")
_RESTORED_MODULES = frozenset(("_locale", "asyncio.events", "decimal", "threading"))
_HOOKS = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")


class ProcessState:
    """How a worker process was before its first task. The standard streams must be in place."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        try:
            self._directory = os.getcwd()
            self._directory_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            self._directory, self._directory_fd = "", -1
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._streams = [os.dup(number) for number in range(3)]
        self._handlers = list(map(_signal.getsignal, _SIGNALS))
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._limits = list(map(resource.getrlimit, _LIMITS))
        for name in ("resource", "signal"):
            # A task that uses it imports it first, and so puts it here again.
            sys.modules.pop(name, None)
        self._affinity = os.sched_getaffinity(0)
        # A changed root directory shows in the path of the working directory.
        self._fixed = getpriority(0, 0), getresuid()
        self._values = self._read_values()
        self._objects = self._read_objects()
        self._environ, self._path = os.environ, sys.path
        self.note_imports()

    def note_imports(self) -> None:
        """Take over what the modules of a function did when they were imported, since that happens once."""
        self._environment = dict(os.environb)
        self._path_entries = list(sys.path)
        self._threads = _thread._count()
        decimal = sys.modules.get("decimal")
        self._decimal: Any = decimal and decimal.getcontext().copy()
        asyncio = sys.modules.get("asyncio.events")
        self._policy: Any = getattr(asyncio, "_event_loop_policy", None)
        locale = sys.modules.get("_locale")
        self._locale = locale.setlocale(locale.LC_ALL) if locale else ""

    def run(self, function: Callable[..., bytes], *args: object) -> bytes:
        """Call a function with context variables of its own."""
        return contextvars.copy_context().run(function, *args)

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
        if "signal" in modules:
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
        if closed or self._read_objects() != self._objects:
            self._restore_objects()
        umask(self._umask)
        if os.environ is not self._environ or self._environ._data != self._environment:  # type: ignore[attr-defined]
            self._restore_environment()
        if sys.path is not self._path or self._path != self._path_entries:
            sys.path = self._path
            self._path[:] = self._path_entries
        if self._read_values() != self._values:
            self._restore_values()
        if sched_getaffinity(0) != self._affinity:
            os.sched_setaffinity(0, self._affinity)
        if not modules.keys().isdisjoint(_RESTORED_MODULES):
            self._restore_modules()
        return (
            self._restore_directory()
            or ("resource" in modules and self._restore_limits())
            or ((getpriority(0, 0), getresuid()) != self._fixed and "its priority, or its user")
            or (_thread._count() > self._threads and self._left_threads())
            or ""
        )

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

    @staticmethod
    def _read_objects() -> tuple[object, ...]:
        return (
            sys.stdin,
            sys.stdout,
            sys.stderr,
            sys.excepthook,
            sys.displayhook,
            sys.unraisablehook,
            sys.breakpointhook,
        )

    def _restore_objects(self) -> None:
        objects = list(self._objects)
        for number, mode in enumerate("rww"):
            stream: Any = objects[number]
            if stream is not None and stream.closed:
                objects[number] = open(  # noqa: SIM115
                    number, mode, encoding=stream.encoding, errors=stream.errors, closefd=False
                )
                setattr(sys, f"__{_STREAMS[number]}__", objects[number])
        for name, value in zip((*_STREAMS, *_HOOKS), objects, strict=True):
            setattr(sys, name, value)
        self._objects = tuple(objects)

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003 (the object that is in step with the process)
        for name in [name for name in os.environb if name not in self._environment]:
            del os.environb[name]
        for name, value in self._environment.items():
            if os.environb.get(name) != value:
                os.environb[name] = value

    def _restore_directory(self) -> str:
        try:
            if getcwd() == self._directory:
                return ""
        except OSError:
            if not self._directory:
                return ""  # it was deleted before the first task
        for place in (self._directory, self._directory_fd):
            try:
                os.chdir(place)
                if os.getcwd() == self._directory:
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

    @staticmethod
    def _read_values() -> tuple[object, ...]:
        return (
            sys.getrecursionlimit(),
            sys.getswitchinterval(),
            _socket.getdefaulttimeout(),
            sys.gettrace(),
            sys.getprofile(),
            gc.isenabled(),
            gc.get_threshold(),
            gc.get_debug(),
        )

    def _restore_values(self) -> None:
        recursion, switch, timeout, trace, profile, enabled, threshold, debug = self._values
        sys.setrecursionlimit(recursion)  # type: ignore[arg-type]
        sys.setswitchinterval(switch)  # type: ignore[arg-type]
        _socket.setdefaulttimeout(timeout)  # type: ignore[arg-type]
        sys.settrace(trace)  # type: ignore[arg-type]
        sys.setprofile(profile)  # type: ignore[arg-type]
        (gc.enable if enabled else gc.disable)()
        gc.set_threshold(*threshold)  # type: ignore[misc]
        gc.set_debug(debug)  # type: ignore[arg-type]

    def _restore_modules(self) -> None:
        modules = sys.modules
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

    def _restore_event_loop(self, events: Any) -> None:
        events._set_running_loop(None)
        policy: Any = getattr(events, "_event_loop_policy", None)
        local = getattr(policy, "_local", None)
        if local is not None:
            loop = getattr(local, "_loop", None)
            if loop is not None:
                loop.close()
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
