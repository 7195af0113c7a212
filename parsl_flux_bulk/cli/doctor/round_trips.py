"""Run one task in a worker, and one in a block, each in a process of its own, which a hang cannot outlive."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from parsl_flux_bulk.cli.doctor.finding import Finding, failed, ok
from parsl_flux_bulk.protocol.stderr_tail import last_lines

TIMEOUT = 120.0
"""Seconds that a round trip may take."""

_WORKER = """
import os
from parsl_flux_bulk.pool.executor import FluxPoolExecutor
with FluxPoolExecutor() as pool:
    assert pool.submit(os.getpid).result() != os.getpid()
    print(pool.status_report().instance)
"""

_BLOCK = """
import importlib.util, os, shutil
import parsl
from parsl.providers import LocalProvider
from parsl_flux_bulk.executor.executor import FluxBulkExecutor
place = None if shutil.which("flux") and importlib.util.find_spec("flux") else "local"
provider = LocalProvider(init_blocks=1, max_blocks=1)
with parsl.load(parsl.Config(executors=[FluxBulkExecutor(instance=place, provider=provider)])):
    assert parsl.python_app(os.getpid)().result() != os.getpid()
print("a block of", "Flux" if place is None else "this machine, without Flux")
"""


def worker(timeout: float = TIMEOUT) -> Finding:
    """Check that a task runs in a worker of the instance that an executor would choose."""
    return _run("worker round trip", _WORKER, timeout)


def block(timeout: float = TIMEOUT) -> Finding:
    """Check that a task runs in a block, which a provider starts on this machine."""
    return _run("block round trip", _BLOCK, timeout)


def _run(check: str, program: str, timeout: float) -> Finding:
    directory = tempfile.mkdtemp(prefix="flux-bulk-doctor-")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # The package that this process runs, from whichever directory.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))},
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        if isinstance(error, KeyboardInterrupt):
            raise
        remedy = f"see the log in {directory}; if lines above are not ok, begin with them"
        return failed(check, _with_tail(f"no answer within {timeout:g} s", errors), remedy)
    if process.returncode:
        remedy = f"if lines above are not ok, begin with them; the output is in {directory}"
        return failed(check, _with_tail(f"exit status {process.returncode}", errors), remedy)
    shutil.rmtree(directory, ignore_errors=True)
    seconds = time.monotonic() - began
    return ok(check, f"{seconds:.1f} s from an empty interpreter to the result, on {output.strip()}")


def _with_tail(what: str, errors: str) -> str:
    tail = last_lines(errors, 3)
    return f"{what}: {tail}" if tail else what
