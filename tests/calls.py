"""Functions that tasks call in the tests of workers, which import this module from the ``sys.path`` sent.

The module imports little: each worker of a test that kills workers imports it again.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import time


def sleep_and_return(seconds, value=None):
    time.sleep(seconds)
    return value


def mark(path, seconds=0.0):
    """Record that a task has started, then sleep."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"started\n")
    os.close(fd)
    time.sleep(seconds)


def traces_of_the_package():
    """Return what a task sees of the package: the module `channel`, __main__, variables, sys.path[0]."""
    import channel

    names = [name for name in vars(sys.modules["__main__"]) if not name.startswith("__")]
    ours = [name for name in os.environ if name.startswith("PARSL_FLUX_BULK_")]
    return channel.whose(), names, ours, sys.path[0]


def read_stdin():
    return sys.stdin.read()


def write_stderr(size, character=b"x"):
    os.write(2, character * size)


def talk_and_die(lines):
    for line in range(lines):
        print(f"line {line}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def fork_and_wait():
    """Fork a copy that returns from the call, too; return its exit status, and in the copy None."""
    pid = os.fork()
    return os.waitpid(pid, 0)[1] if pid else None


def start_daemon(note):
    """Start a process in a session of its own, whose parent ends; write its pid to a file."""
    import subprocess

    command = f"sleep 3600 & echo $! > {note}"
    subprocess.run(["setsid", "sh", "-c", command], stdout=subprocess.DEVNULL, check=True)


def replace_descriptors(path, first, last):
    """Close descriptors, and open a file under the number of each."""
    os.closerange(first, last)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"started\n")
    for number in range(first, last):
        if number != fd:
            os.dup2(fd, number)


def crash():
    import ctypes

    ctypes.string_at(0)


def parallel():
    import concurrent.futures
    import multiprocessing
    import operator
    import subprocess

    with multiprocessing.get_context("fork").Pool(2) as pool:
        forked = pool.map(operator.neg, [1, 2, 3])
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        threaded = list(threads.map(operator.neg, [1, 2, 3]))
    return forked, threaded, subprocess.check_output(["echo", "hi"])


def fork():
    return os.fork() > 0


def start_another(path):
    """Start a long process, write its pid to a file, and wait for it."""
    import subprocess

    subprocess.run(["sh", "-c", f"echo $$ > {path}; exec sleep 60"])


def touch_at_exit(path):
    atexit.register(lambda: open(path, "w").close())


def print_rank(prefix):
    print(prefix, os.environ.get("FLUX_TASK_RANK"))
    return os.environ.get("FLUX_TASK_RANK")


def sleep_at_exit():
    atexit.register(lambda: time.sleep(60))
    return os.getpid()


def imported(module):
    return module in sys.modules


def environment_of_process():
    """Return everything that a worker puts back, as it is now."""
    import asyncio
    import decimal
    import gc
    import resource
    import socket
    import threading

    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "umask": [os.umask(0o22), os.umask(0o22)][0],
        "handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals()) if n != signal.SIGINT],
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "timers": [signal.getitimer(n) for n in range(3)],
        "limits": [resource.getrlimit(getattr(resource, name)) for name in names],
        "path": list(sys.path),
        "streams": [(s.fileno(), s.closed) for s in (sys.stdin, sys.stdout, sys.stderr)],
        "descriptors": [os.readlink(f"/proc/self/fd/{n}") for n in range(3)],
        "recursion": sys.getrecursionlimit(),
        "timeout": socket.getdefaulttimeout(),
        "decimal": (decimal.getcontext().prec, decimal.getcontext().rounding),
        "hooks": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
        "excepthook": sys.excepthook is sys.__excepthook__,
        "loop": loop_by_default(asyncio),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "digits": sys.get_int_max_str_digits(),
        "zone": time.tzname,
        "imports": (len(sys.meta_path) > 2, len(sys.path_hooks) > 1),
        "affinity": sorted(os.sched_getaffinity(0)),
    }


def loop_by_default(asyncio):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return asyncio.get_event_loop().is_closed()


def unclosable_loop(asyncio):
    class Loop(asyncio.SelectorEventLoop):
        def close(self):
            super().close()
            raise OSError(errno.EBADF, "its descriptors are closed")

    return Loop()


def disturb(directory):
    """Leave everything changed that a worker puts back."""
    import asyncio
    import decimal
    import gc
    import resource
    import socket
    import tempfile
    import threading

    os.chdir(tempfile.mkdtemp(dir=directory))
    os.rmdir(os.getcwd())
    os.environ["LEFT"] = "by a task"
    os.environ.pop("HOME", None)
    os.environ["PATH"] = "/nowhere"
    os.environ["TZ"] = "XYZ-7"
    time.tzset()
    os.umask(0o777)
    for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    for timer in range(3):
        signal.setitimer(timer, 3600)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    sys.path.insert(0, "/nowhere")
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    sys.stdout.close()
    sys.stderr = sys.stdin = None
    sys.setrecursionlimit(5000)
    socket.setdefaulttimeout(3)
    decimal.getcontext().prec = 3
    threading.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    sys.excepthook = print
    asyncio.set_event_loop(unclosable_loop(asyncio))
    gc.disable()
    gc.set_threshold(1)
    sys.set_int_max_str_digits(1000)
    sys.meta_path.clear()
    sys.path_hooks.clear()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def leave_thread():
    import threading

    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return os.getpid()


def leave_thread_after(gate):
    """Wait until a file exists, then leave a thread behind: the worker is replaced."""
    while not os.path.exists(gate):
        time.sleep(0.001)
    leave_thread()


def clear_modules():
    sys.modules.clear()
    return os.getpid()


def change_group():
    os.setpgid(0, os.getpgid(os.getppid()))
    return os.getpid()


def lower_priority():
    os.nice(1)
    return os.getpid()


def alarm_at_return():
    """Leave a timer whose handler raises an exception right after the call."""

    def raise_it(*_):
        raise TimeoutError("too late")

    signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, 0.00005)
