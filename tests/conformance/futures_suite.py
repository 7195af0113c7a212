"""Run CPython's own tests of concurrent.futures on FluxPoolExecutor.

    python tests/conformance/futures_suite.py [--suite FILE] [embedded] [flux]

The tests are ``test/test_concurrent_futures.py`` of Python 3.11: that of the running Python, or, where it has
none, `FILE` (Debian has it in ``libpython3.11-testsuite``). The exit status is 1 if a test failed or too few
ran. `LEFT_OUT` lists the tests that are not run, each with its reason.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import sys
import tempfile
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers import flux_instance, flux_missing  # noqa: E402

from parsl_flux_bulk import FluxPoolExecutor  # noqa: E402
from parsl_flux_bulk.errors import NotSerializable, TaskError  # noqa: E402
from parsl_flux_bulk.instances.local.client import LocalInstance  # noqa: E402

AT_LEAST = 37
"""Minimum number of tests that pass."""

SUITES = (
    "InitializerMixin",
    "FailingInitializerMixin",
    "ProcessPoolShutdownTest",
    "WaitTests",
    "AsCompletedTests",
    "ProcessPoolExecutorTest",
    "ExecutorDeadlockTest",
)

_PRIVATE = "looks at private attributes of ProcessPoolExecutor"
_SCRIPT = "its script imports the class from concurrent.futures; integration/pool has its counterpart"
_EXIT = "expects SystemExit in the script; here a call of sys.exit ends with TaskCrashed"

LEFT_OUT = {
    "test_interpreter_shutdown": _SCRIPT,
    "test_submit_after_interpreter_shutdown": _SCRIPT,
    "test_hang_gh83386": _SCRIPT,
    "test_processes_terminate": _PRIVATE,
    "test_context_manager_shutdown": _PRIVATE,
    "test_del_shutdown": _PRIVATE,
    "test_shutdown_no_wait": _PRIVATE,
    "test_saturation": _PRIVATE,
    "test_idle_process_reuse_one": _PRIVATE,
    "test_idle_process_reuse_multiple": _PRIVATE,
    "test_max_tasks_per_child": _PRIVATE,
    "test_max_tasks_early_shutdown": _PRIVATE,
    "test_max_tasks_per_child_defaults_to_spawn_context": _PRIVATE,
    "test_shutdown_deadlock_pickle": _PRIVATE,
    "test_killed_child": "a worker that dies fails its call only; the next call has another worker",
    "test_traceback": "expects the text of a _RemoteTraceback; here the traceback itself returns",
    "test_cancel_futures": "expects that a call begins before shutdown; here workers start with a call",
    "test_error_at_task_pickle": "expects the error in the future; here submit raises CallNotSerializable",
    "test_exit_during_func_exec_on_worker": _EXIT,
    "test_exit_during_result_pickle_on_worker": _EXIT,
    "test_max_workers_too_large": "a limit of Windows",
    "test_ressources_gced_in_workers": "talks to a multiprocessing manager of the parent",
}


def load(suite: Path | None) -> ModuleType:
    """Import the module of the tests, by a name by which workers can import it too."""
    if suite is None:
        return importlib.import_module("test.test_concurrent_futures")
    sys.path.append(str(suite.parent))
    return importlib.import_module(suite.stem)


def executor_class(instance: Any, directory: str) -> type[FluxPoolExecutor]:
    """Return a FluxPoolExecutor that takes what the tests pass to ProcessPoolExecutor."""

    class Pool(FluxPoolExecutor):
        def __init__(self, *args: Any, mp_context: Any = None, **kwargs: Any) -> None:
            place = instance or LocalInstance(cores=5, oversubscribe=True)
            super().__init__(*args, instance=place, working_dir=directory, **kwargs)

        @property
        def _broken(self) -> bool:  # which a test waits for
            try:
                self.submit(int)
            except concurrent.futures.BrokenExecutor:
                return True
            return False

    return Pool


def cases(module: ModuleType, pool: type[FluxPoolExecutor]) -> unittest.TestSuite:
    """Return the tests, with the names of the pool and of its errors in place of the module's."""
    names: Any = module
    # The error of a call whose worker died, which breaks no pool here.
    names.BrokenProcessPool = TaskError
    names.PicklingError = NotSerializable
    suite = unittest.TestSuite()
    for name in SUITES:
        mixin = getattr(module, name)
        bases = (mixin, names.ExecutorMixin, names.BaseTestCase)
        if issubclass(mixin, names.ExecutorMixin):
            bases = (mixin, names.BaseTestCase)
        own = {
            "executor_type": pool,
            "__module__": __name__,
            "get_context": lambda self: None,
            # The exception of an initializer is the cause of the error, and is not logged.
            "_assert_logged": lambda self, message: contextlib.nullcontext(),
        }
        case = type(name, bases, own)
        for test in unittest.TestLoader().getTestCaseNames(case):
            if test not in LEFT_OUT:
                suite.addTest(case(test))
    return suite


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path)
    parser.add_argument("places", nargs="*", metavar="PLACE", help="embedded, flux")
    options = parser.parse_args()
    try:
        module = load(options.suite)
    except ModuleNotFoundError as error:
        print(
            f"conformance of FluxPoolExecutor: SKIPPED: this Python has no test suite ({error}); give --suite"
        )
        return 0
    good = True
    for place in options.places or ["embedded", "flux"]:
        print(f"\n==== CPython's test_concurrent_futures: {place}", flush=True)
        if place == "flux" and flux_missing():
            print(f"SKIPPED: {flux_missing()}")
            continue
        with tempfile.TemporaryDirectory(prefix="futures-") as directory:
            if place == "flux":
                with flux_instance() as uri:
                    result = run(module, executor_class(uri, directory))
            else:
                result = run(module, executor_class(None, directory))
        passed = result.testsRun - len(result.failures) - len(result.errors) - len(result.skipped)
        print(f"{place}: {passed} passed, {len(LEFT_OUT)} left out")
        good = good and result.wasSuccessful() and passed >= AT_LEAST
    return 0 if good else 1


def run(module: ModuleType, pool: type[FluxPoolExecutor]) -> unittest.TestResult:
    return unittest.TextTestRunner(verbosity=2).run(cases(module, pool))


if __name__ == "__main__":
    sys.exit(main())
