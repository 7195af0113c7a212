"""Make one measurement of one executor; each measure is a function.

``python benchmarks/measures.py MEASURE EXECUTOR JSON`` prints one number, or one JSON object, as its last
line. `JSON` holds the keyword arguments. ``benchmarks/peers.py`` runs each measurement as a process.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import executors
import parsl

MEGABYTE = 1_000_000


@contextlib.contextmanager
def loaded(name: str) -> Iterator[None]:
    """Load Parsl with one executor for the time of a ``with`` block."""
    with parsl.load(parsl.Config(executors=[executors.parsl_executor(name)])):
        yield


@parsl.python_app
def nothing(*_: Any) -> int:
    return 1


@parsl.python_app
def size_of(data: bytes) -> int:
    return len(data)


@parsl.python_app
def make(size: int) -> bytes:
    return bytes(size)


@parsl.python_app
def sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


@parsl.bash_app
def true() -> str:
    return "true"


def warm_up(app: Callable[..., Any], *arguments: Any) -> None:
    """Wait until both workers have started and have run the app."""
    for _ in range(2):
        wait_all([app(*arguments) for _ in range(2 * executors.WORKERS)])


def wait_all(futures: list[Any]) -> None:
    for future in futures:
        future.result()


def rate(app: Callable[..., Any], tasks: int, *arguments: Any) -> float:
    """Return the rate in tasks/s, from the first call to the last result."""
    warm_up(app, *arguments)
    began = time.perf_counter()
    wait_all([app(*arguments) for _ in range(tasks)])
    return tasks / (time.perf_counter() - began)


# -- through Parsl's DataFlowKernel ------------------------------------------------------------------


def perf(name: str, seconds: float) -> float:
    """Return the rate of no-op tasks in tasks/s, by Parsl's own benchmark."""
    from parsl.benchmark.perf import cli_run

    os.environ["BENCHMARK_EXECUTOR"] = name
    sys.argv = ["parsl-perf", "--config", executors.__file__, "--time", str(seconds)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli_run()
    return float(re.findall(r"Tasks per second: ([\d.]+)", printed.getvalue())[-1])


def chain(name: str, links: int) -> float:
    """Return the milliseconds for each link of a chain of dependent tasks."""
    with loaded(name):
        warm_up(nothing)
        began = time.perf_counter()
        future = nothing()
        for _ in range(links - 1):
            future = nothing(future)
        future.result()
        return 1000 * (time.perf_counter() - began) / links


def first(name: str) -> float:
    """Return the seconds from before ``parsl.load`` to the first result."""
    config = parsl.Config(executors=[executors.parsl_executor(name)])
    began = time.perf_counter()
    with parsl.load(config):
        nothing().result()
        return time.perf_counter() - began


def bash(name: str, tasks: int) -> float:
    """Return the rate of bash apps, in apps/s."""
    with loaded(name):
        return rate(true, tasks)


def megabyte_arguments(name: str, tasks: int) -> float:
    """Return the rate of tasks with an argument of 1 MB, in tasks/s."""
    with loaded(name):
        return rate(size_of, tasks, os.urandom(MEGABYTE))


def megabyte_results(name: str, tasks: int) -> float:
    """Return the rate of tasks with a result of 1 MB, in tasks/s."""
    with loaded(name):
        return rate(make, tasks, MEGABYTE)


def sleeps(name: str, tasks: int, seconds: float) -> float:
    """Return the rate of sleeping tasks as a percentage of the ideal rate."""
    with loaded(name):
        warm_up(sleep, 0.0)
        began = time.perf_counter()
        wait_all([sleep(seconds) for _ in range(tasks)])
        return 100 * tasks * seconds / executors.WORKERS / (time.perf_counter() - began)


# -- the executor alone ------------------------------------------------------------------------------


def no_op() -> int:
    return 1


def hold(path: str) -> None:
    """Return when `path` exists."""
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.02)


@contextlib.contextmanager
def alone(name: str) -> Iterator[Callable[..., Any]]:
    """Start an executor without Parsl's DataFlowKernel; yield its submit function."""
    if name == executors.PROCESSES:
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(executors.WORKERS) as processes:
            yield processes.submit
    elif name == executors.EXECUTORLIB:
        from executorlib import FluxJobExecutor

        with FluxJobExecutor(max_workers=executors.WORKERS, block_allocation=True) as jobs:
            yield jobs.submit
    elif name in (executors.POOL, executors.EMBEDDED_POOL):
        with executors.pool(name) as pool:
            yield pool.submit
    elif name == executors.RAY:
        import ray

        ray.init(num_cpus=executors.WORKERS, include_dashboard=False, log_to_driver=False)
        remote: Any = functools.lru_cache(ray.remote)
        yield lambda function: remote(function).remote().future()
        ray.shutdown()
    else:
        executor = executors.parsl_executor(name)
        executor.run_dir = os.getcwd()
        if name == executors.HTEX:
            executor.provider.script_dir = os.getcwd()
        executor.start()
        if name == executors.HTEX:
            executor.scale_out_facade(1)
        try:
            yield lambda function, *arguments: executor.submit(function, {}, *arguments)
        finally:
            executor.shutdown()


def executor_alone(name: str, tasks: int) -> float:
    """Return the rate of no-op tasks, in tasks/s."""
    with alone(name) as submit:
        return rate(lambda: submit(no_op), tasks)


def mapped(name: str, items: int) -> float:
    """Return the rate of no-op items of `map`, in items/s; ProcessPoolExecutor gets 1000 at a time."""
    from concurrent.futures import ProcessPoolExecutor

    own = name != executors.PROCESSES
    with executors.pool(name) if own else ProcessPoolExecutor(executors.WORKERS) as pool:
        warm_up(lambda: pool.submit(abs, 1))
        began = time.perf_counter()
        for _ in pool.map(abs, range(items), **({} if own else {"chunksize": 1000})):
            pass
        return items / (time.perf_counter() - began)


def round_trip(name: str, calls: int, percentile: int = 50) -> float:
    """Return a percentile of the time of one call at a time, in ms; the median by default."""
    with alone(name) as submit:
        warm_up(lambda: submit(no_op))
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            submit(no_op).result()
            times.append(time.perf_counter() - began)
        return 1000 * statistics.quantiles(times, n=100, method="inclusive")[percentile - 1]


def batches(name: str, calls: int, seconds: float) -> float:
    """Return the rate of joblib's calls of so many seconds, in calls/s."""
    with joblib_backend(name) as parallel:
        import joblib

        began = time.perf_counter()
        parallel(joblib.delayed(time.sleep)(seconds) for _ in range(calls))
        return calls / (time.perf_counter() - began)


def array(name: str, calls: int, megabytes: int) -> float:
    """Return the rate of joblib's calls with one large array, in calls/s."""
    import numpy

    data = numpy.ones(megabytes * MEGABYTE // 8)
    with joblib_backend(name) as parallel:
        import joblib

        began = time.perf_counter()
        parallel(joblib.delayed(len)(data) for _ in range(calls))
        return calls / (time.perf_counter() - began)


@contextlib.contextmanager
def joblib_backend(name: str) -> Iterator[Any]:
    """Choose a backend of joblib whose workers have started; yield its Parallel."""
    import joblib

    import parsl_flux_bulk.joblib  # noqa: F401

    with contextlib.ExitStack() as stack:
        if name == executors.LOKY:
            stack.enter_context(joblib.parallel_config("loky", n_jobs=executors.WORKERS))
        else:
            pool = stack.enter_context(executors.pool(name))
            stack.enter_context(joblib.parallel_config("flux", n_jobs=executors.WORKERS, executor=pool))
        parallel = joblib.Parallel()
        parallel(joblib.delayed(time.sleep)(0.1) for _ in range(2 * executors.WORKERS))
        yield parallel


def memory(name: str, tasks: int) -> float:
    """Return the bytes of this process's memory for each pending task."""
    with alone(name) as submit, tempfile.TemporaryDirectory() as directory:
        warm_up(lambda: submit(no_op))
        path = os.path.join(directory, "go")
        futures = [submit(hold, path) for _ in range(executors.WORKERS)]
        # Not counted: tasks sent to workers ahead of time, and the first growth of tables.
        futures += [submit(no_op) for _ in range(1000)]
        time.sleep(0.5)
        before = resident()
        futures += [submit(no_op) for _ in range(tasks)]
        after = resident()
        Path(path).touch()
        wait_all(futures)
        return (after - before) / tasks


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- many workers on one node ------------------------------------------------------------------------


def meet(directory: str, parties: int) -> tuple[float, float, int]:
    """Wait until `parties` calls run; return the start of this one, its CPU time, and its parent."""
    import os
    import time

    began, used = time.time(), time.process_time()
    with open(os.path.join(directory, str(os.getpid())), "w"):
        pass
    until = time.time() + 60
    while len(os.listdir(directory)) < parties:
        if time.time() > until:
            raise TimeoutError(f"{len(os.listdir(directory))} of {parties} workers")
        time.sleep(0.05)
    return began, used, os.getppid()


def workers_ready(name: str, workers: int) -> dict[str, float]:
    """Return CPU and wall seconds until each worker runs a task; the CPU time of the job shell included."""
    # A manager starts one worker for each CPU that it can bind one to, unless this variable is set.
    os.environ["PARSL_FLUX_BULK_SLOTS"] = str(workers)
    with alone(name) as submit, tempfile.TemporaryDirectory() as directory:
        submitted = time.time()
        futures = [submit(meet, directory, workers) for _ in range(workers)]
        while len(os.listdir(directory)) < workers and not any(future.done() for future in futures):
            time.sleep(0.01)
        parents = {int(entry) for entry in os.listdir(directory)}
        parents = {_parent(pid) for pid in parents}
        shells = {_parent(pid) for pid in parents}
        shared = sum(map(_cpu, parents | shells))
        met = [future.result() for future in futures]
    return {
        "cpu": shared + sum(used for _, used, _ in met),
        "wall": max(began for began, _, _ in met) - submitted,
        "jobs": float(len(parents)),
    }


def _parent(pid: int) -> int:
    # The command, the field before, may contain any character: proc(5).
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _cpu(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, with a finer resolution than its ``stat``."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


MEASURES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        perf,
        chain,
        first,
        bash,
        megabyte_arguments,
        megabyte_results,
        sleeps,
        executor_alone,
        mapped,
        round_trip,
        batches,
        array,
        memory,
        workers_ready,
    )
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("measure", choices=list(MEASURES))
    parser.add_argument("executor", choices=[*executors.PARSL_EXECUTORS, *executors.OTHERS])
    parser.add_argument("arguments", type=json.loads, metavar="JSON", help="keyword arguments of the measure")
    options = parser.parse_args()
    print(json.dumps(MEASURES[options.measure](options.executor, **options.arguments)), flush=True)
