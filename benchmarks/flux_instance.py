"""Start fresh Flux instances for benchmarks: an instance slows down with the number of its ended jobs."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

TIMEOUT = 60.0
"""Seconds that an instance may take to end."""


def flux_missing() -> str:
    """Return why Flux cannot be used here, or "" if it can."""
    if shutil.which("flux") is None:
        return "there is no `flux` command on PATH"
    for module in ("flux", "yaml", "ply"):
        if importlib.util.find_spec(module) is None:
            return f"the Python module {module} is missing: pip install flux-python==VERSION ply pyyaml"
    return ""


@contextmanager
def flux_instance(fake_cores: int = 0, *start_options: str) -> Iterator[str]:
    """Run a Flux instance for the time of a ``with`` block, and yield its URI.

    Parameters
    ----------
    fake_cores : int
        Number of cores that the instance assumes the node has; 0 for the cores that it has.
    start_options : str
        Options of flux-start(1).
    """
    options = [*start_options, *(["--conf=resource.noverify=true"] if fake_cores else [])]
    script = "echo $FLUX_URI; exec cat"
    if fake_cores:
        script = (
            "set -e; flux module remove sched-simple; "
            f"flux R encode -r0 -c0-{fake_cores - 1} -H $(hostname) > $FLUX_RUNDIR_R; "
            "flux resource reload $FLUX_RUNDIR_R; flux module load sched-simple; " + script
        ).replace("$FLUX_RUNDIR_R", '"$(flux getattr rundir)/R.fake"')
    process = subprocess.Popen(
        ["flux", "start", *options, "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        uri = process.stdout.readline().strip()
        if not uri:
            raise RuntimeError(f"flux start ended with {process.wait(TIMEOUT)} and gave no URI")
        yield uri
    finally:
        process.stdin.close()
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            # Each broker has a session of its own; one whose peers were killed may wait for them.
            for broker in psutil.Process(process.pid).children(recursive=True):
                broker.kill()
            process.kill()
            process.wait()
        process.stdout.close()
