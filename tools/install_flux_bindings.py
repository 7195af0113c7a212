"""Install the Python bindings that fit the Flux on PATH; do nothing without Flux.

The bindings on PyPI (``flux-python``) load the machine's own ``libflux-core``, so their version should be
that of flux-core. If PyPI does not have that version, the newest older one is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys


def flux_version() -> str | None:
    """Return the version of the ``flux`` command on PATH, such as "0.88.0"; None without one."""
    if shutil.which("flux") is None:
        return None
    shown = subprocess.run(["flux", "version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^commands:\s*(\d+\.\d+\.\d+)", shown, re.MULTILINE)
    if found is None:
        raise SystemExit(f"`flux version` names no version of its commands; it printed:\n{shown}")
    return found[1]


def main() -> int:
    """Install, and return pip's exit status."""
    version = flux_version()
    if version is None:
        print("no flux on PATH: its Python bindings are not installed")
        return 0
    # ply and pyyaml are needed by flux-python, whose wheel does not name them.
    packages = [f"flux-python<={version}", "ply", "pyyaml"]
    return subprocess.run([sys.executable, "-m", "pip", "install", *packages]).returncode


if __name__ == "__main__":
    sys.exit(main())
