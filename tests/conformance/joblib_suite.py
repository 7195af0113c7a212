"""Run joblib's own tests of its parallel backends, which are part of its wheel, on the backend "flux".

    python tests/conformance/joblib_suite.py [embedded] [flux]

Run are those tests of joblib's ``test_parallel.py`` that take a backend by name, but for `LEFT_OUT`. As a
plugin of pytest, this file registers the backend. The exit status is not 0 if a test failed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import joblib

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers import flux_instance, flux_missing  # noqa: E402

import parsl_flux_bulk.joblib  # noqa: E402
from parsl_flux_bulk import FluxPoolExecutor  # noqa: E402
from parsl_flux_bulk.instances.local.client import LocalInstance  # noqa: E402

TESTS = Path(joblib.__file__).parent / "test" / "test_parallel.py"

LEFT_OUT = {
    "test_nested_loop[multiprocessing-flux]": "the executor of this process does not work in its fork",
    "test_nested_loop[loky-flux]": "loky's workers have not imported parsl_flux_bulk.joblib",
    "test_nested_loop[back_compat_backend-flux]": "the same: this is loky under another name",
}

PLACE = "CONFORMANCE_INSTANCE"
"""Environment variable with the URI of a Flux instance, or "embedded"."""


def pytest_configure() -> None:
    place: Any = os.environ[PLACE]
    executor = FluxPoolExecutor(
        instance=LocalInstance(cores=4, oversubscribe=True) if place == "embedded" else place
    )

    class Backend(parsl_flux_bulk.joblib.FluxBackend):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{"executor": executor, **options})

    joblib.register_parallel_backend("flux", Backend)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    items[:] = [item for item in items if item.name not in LEFT_OUT]


def run(instance: str) -> int:
    """Run the tests on one instance."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, PLACE: instance, "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(prefix="joblib-") as directory:
        configuration = Path(directory, "pytest.ini")
        configuration.write_text("[pytest]\n")  # joblib's markers are not those of this project
        command = [sys.executable, "-m", "pytest", "-q", "-c", str(configuration), "-p", "joblib_suite"]
        command += ["-p", "no:cacheprovider", "-W", "ignore", "-k", "flux", "--timeout", "60", str(TESTS)]
        return subprocess.run(command, cwd=directory, env=environment, timeout=900).returncode


def main() -> int:
    statuses = []
    for place in sys.argv[1:] or ["embedded", "flux"]:
        print(f"\n==== joblib's tests of parallel backends: {place}", flush=True)
        if place == "flux" and flux_missing():
            print(f"SKIPPED: {flux_missing()}")
            continue
        with flux_instance() if place == "flux" else contextlib.nullcontext("embedded") as instance:
            statuses.append(run(instance))
    return max(statuses, default=0)


if __name__ == "__main__":
    sys.exit(main())
