"""Fresh Flux instances for benchmarks: one slows down with the finished jobs that it remembers."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

START_TIMEOUT = 60.0


def flux_missing() -> str:
    """What is missing for real Flux, or ""."""
    if shutil.which("flux") is None:
        return "there is no `flux` command on PATH"
    for module in ("flux", "yaml", "ply"):
        if importlib.util.find_spec(module) is None:
            return f"the Python module {module} is missing: pip install 'parsl-flux-bulk[flux]'"
    return ""


@contextmanager
def flux_instance(fake_cores: int = 0) -> Iterator[str]:
    """Run a Flux instance for the block, and yield its URI.

    Parameters
    ----------
    fake_cores : int
        Let it believe that the node has so many cores; 0 leaves it as it is.
    """
    options = ["--conf=resource.noverify=true"] if fake_cores else []
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
            raise RuntimeError(f"flux start ended with {process.wait(START_TIMEOUT)} and gave no URI")
        yield uri
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
