"""Run only Parsl's tests of bash apps, in each way that FluxBulkExecutor can run them.

    python tests/conformance/bash_apps.py [CONFIGURATION ...]

``embedded`` and ``flux_workers`` run bash apps in warm workers, ``flux_jobs`` runs each as a Flux job, and
``python_bash`` runs them with Parsl's own code in workers.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import run

CONFIGURATIONS = ("embedded", "flux_workers", "flux_jobs", "python_bash")
AT_LEAST = 15
"""Minimum number of passed tests, so that a run that selected too few fails."""


def main() -> int:
    missing = run.flux_missing()
    good = True
    lines = []
    for name in sys.argv[1:] or CONFIGURATIONS:
        if missing and name.startswith("flux"):
            lines.append(f"{name:16} SKIPPED: {missing}")
            continue
        with tempfile.TemporaryDirectory(prefix=f"bash-apps-{name}-") as directory:
            tests = [str(run.PARSL_TESTS / "test_bash_apps"), str(run.PARSL_TESTS / "test_error_handling")]
            arguments = [*tests, "--config", str(run.HERE / f"{name}.py"), "-k", f"bash and {run.SELECTION}"]
            result = run.run_pytest(name, "Parsl's tests of bash apps", Path(directory), arguments)
        lines.append(f"{name:16} {result}")
        good = good and not result.failed and result.passed >= AT_LEAST
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
