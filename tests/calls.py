"""Functions that tasks call in the tests of workers, which import this module from the ``sys.path`` sent.

The module imports little: each worker of a test that kills workers imports it again.
"""

from __future__ import annotations

import atexit
import os
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
