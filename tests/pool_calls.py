"""Functions of tasks in the tests of pools. Each new worker imports this module, so it imports little."""

from __future__ import annotations

import os
import time
from typing import Any


def square(x: int) -> int:
    return x * x


def captured(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def invert(x: int) -> float:
    return 1 / x


def wait_for_file(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def state_of_process() -> tuple[str, str, str, int]:
    return os.environ.get("OF_THE_INITIALIZER", ""), os.environ.get("OF_A_TASK", ""), os.getcwd(), os.getpid()


def change_state(directory: str) -> None:
    os.environ["OF_THE_INITIALIZER"] = "yes"
    os.chdir(directory)
    os.nice(1)


def change_state_of_a_task() -> None:
    os.environ["OF_A_TASK"] = "yes"
    os.chdir("/")


def fail_to_initialize() -> None:
    raise LookupError("no data")


def where_it_runs() -> tuple[str, int, int]:
    return os.environ.get("PARSL_WORKER_BLOCK_ID", ""), os.getpid(), os.getppid()


# -- for joblib -----------------------------------------------------------------------------------------


def fail_at(n: int, limit: int) -> int:
    if n == limit:
        raise LookupError(n)
    return n


def kind_and_sum(array: Any, other: Any) -> tuple[str, str, int]:
    return type(array).__name__, type(other).__name__, int(array.sum() + other.sum())


def file_of(array: Any) -> str:
    return str(array.filename)


def nested(n: int) -> list[int]:
    import joblib

    result: list[int] = joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(n, k) for k in range(3))
    return result


def nested_in_flux(n: int) -> list[int]:
    import joblib

    result: list[int] = joblib.Parallel(n_jobs=2, backend="flux")(joblib.delayed(pow)(n, k) for k in range(3))
    return result
