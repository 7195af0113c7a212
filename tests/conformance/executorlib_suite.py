"""Run executorlib's own tests of its Flux executor on FluxPoolExecutor.

    python tests/conformance/executorlib_suite.py [--sdist FILE] [flux]

The tests are ``tests/test_fluxjobexecutor.py`` of the source distribution of executorlib 1.0, the last with
tests, which is downloaded unless `FILE` names it. executorlib itself is not needed: the tests get this
package's executor under executorlib's name. The exit status is 1 if a test failed or too few ran. `LEFT_OUT`
lists what is not run, each with its reason.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers import flux_instance, flux_missing  # noqa: E402

from parsl_flux_bulk import FluxPoolExecutor  # noqa: E402

VERSION = "1.0.1"
SUITE = "test_fluxjobexecutor"
AT_LEAST = 3
"""Minimum number of tests that pass."""

_OUTPUT = "expects executorlib's names of output files"

LEFT_OUT = {
    "test_internal_memory": "expects results of the initializer as arguments; here initializers set globals",
    "test_output_files_abs": _OUTPUT,
    "test_output_files_cwd": _OUTPUT,
    "test_validate_max_workers": "expects an error for more workers than fit; here max_workers is a bound",
    "test_fluxclusterexecutor.py": "tests jobs that outlive the script, which this package does not have",
    "test_fluxjobexecutor_plot.py": "tests the drawing of dependencies between futures",
    "test_fluxpythonspawner.py": "tests the classes below executorlib's executor",
}
MPI_TESTS = ("test_flux_executor_parallel", "test_single_task")
"""Tests that need mpi4py and an MPI library that it finds."""


def on_each_rank(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns on each rank, as executorlib does; here rank 0 has the result."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.gather(function(*args))


def executor_class(uri: str, directory: str) -> type[Executor]:
    """Return an executor that takes what the tests pass to executorlib's FluxJobExecutor."""

    class FluxJobExecutor(Executor):
        def __init__(
            self, max_cores: int, resource_dict: dict[str, Any] | None = None, **of_executorlib: Any
        ) -> None:
            assert of_executorlib.keys() <= {
                "block_allocation",
                "disable_dependencies",
                "flux_executor",
                "flux_executor_pmi_mode",
            }, of_executorlib
            resources = resource_dict or {}
            self._ranks = resources.get("cores", 1)
            threads = resources.get("threads_per_core", 1)
            workers = max(1, max_cores // (self._ranks * threads))
            self._pool = FluxPoolExecutor(workers, instance=uri, working_dir=directory)
            specification = {"cores_per_task": threads}
            if self._ranks > 1:
                specification["num_tasks"] = self._ranks
            self._executor = self._pool.with_resources(**specification)

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self._ranks > 1:
                return self._executor.submit(on_each_rank, fn, *args, **kwargs)
            return self._executor.submit(fn, *args, **kwargs)

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self._pool.shutdown(wait, cancel_futures=cancel_futures)

    return FluxJobExecutor


def download(directory: Path) -> Path:
    """Download the source distribution, and return its path."""
    name = f"executorlib=={VERSION}"
    options = ["--no-deps", "--no-binary", "executorlib", "--dest", str(directory)]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, name], check=True)
    (sdist,) = directory.glob("executorlib-*.tar.gz")
    return sdist


def extract(sdist: Path, directory: Path) -> None:
    """Write the module of the tests to a directory from which workers can import it."""
    with tarfile.open(sdist) as archive:
        (member,) = [name for name in archive.getnames() if name.endswith(f"tests/{SUITE}.py")]
        source = archive.extractfile(member)
        assert source is not None
        (directory / f"{SUITE}.py").write_bytes(source.read())


def write_stand_ins(directory: Path) -> None:
    """Write what the module of the tests imports of executorlib: workers import the module."""
    package = directory / "executorlib"
    (package / "interactive").mkdir(parents=True)
    (package / "__init__.py").write_text("FluxJobExecutor = None\n")
    (package / "interactive" / "__init__.py").touch()
    (package / "interactive" / "fluxspawner.py").write_text("FluxPythonSpawner = object\n")


def load(directory: Path, executor: type[Executor]) -> ModuleType:
    """Import the module of the tests, which import executorlib and Flux's bindings."""
    spawner = "executorlib.interactive.fluxspawner"
    names = ("executorlib", "executorlib.interactive", spawner, "flux", "flux.job")
    stand_ins: dict[str, Any] = {name: ModuleType(name) for name in names}
    stand_ins["executorlib"].FluxJobExecutor = executor
    stand_ins[spawner].FluxPythonSpawner = object
    stand_ins["flux"].job = stand_ins["flux.job"]
    stand_ins["flux.job"].FluxExecutor = object
    sys.path.append(str(directory))
    # The tests are skipped where FLUX_URI is not set.
    with patch.dict(sys.modules, stand_ins), patch.dict(os.environ, {"FLUX_URI": "set"}):
        module = __import__(SUITE)
    sys.modules[SUITE] = module
    return module


def cases(module: ModuleType) -> Iterator[unittest.TestCase]:
    """Yield the tests that are run."""
    done = subprocess.run(
        [sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, text=True, check=False
    )
    reason = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    for test in unittest.TestLoader().getTestCaseNames(module.TestFluxBackend):
        if reason and test in MPI_TESTS:
            print(f"SKIPPED {test}: {reason}; set LD_LIBRARY_PATH, or pip install mpi4py mpich")
        elif test not in LEFT_OUT:
            yield module.TestFluxBackend(test)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sdist", type=Path)
    options = parser.parse_args()
    print("\n==== executorlib's tests of its Flux executor", flush=True)
    if flux_missing():
        print(f"SKIPPED: {flux_missing()}")
        return 0
    with tempfile.TemporaryDirectory(prefix="executorlib-") as name, flux_instance() as uri:
        directory = Path(name)
        extract(options.sdist or download(directory), directory)
        write_stand_ins(directory)
        module = load(directory, executor_class(uri, name))
        result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(cases(module)))
    passed = result.testsRun - len(result.failures) - len(result.errors) - len(result.skipped)
    print(f"{passed} passed, {len(LEFT_OUT)} left out")
    return 0 if result.wasSuccessful() and passed >= AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
