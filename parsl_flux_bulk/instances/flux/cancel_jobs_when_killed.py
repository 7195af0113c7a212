"""Cancel this process's jobs in a Flux instance that it does not own, if this process is killed."""

from __future__ import annotations

import sys
from pathlib import Path

from parsl_flux_bulk.instances.flux import cancel_marked_jobs
from parsl_flux_bulk.instances.flux.lifeline import Guard


class CancelGuard(Guard):
    """A shell that runs :mod:`.cancel_marked_jobs` in a new interpreter when this process ends.

    Parameters
    ----------
    uri : str or None
        Of the instance; None is the enclosing one.
    mark : str
        Value of the attribute MARK in the jobspecs of the jobs to cancel.
    """

    def __init__(self, uri: str | None, mark: str) -> None:
        root = str(Path(__file__).resolve().parents[3])
        # The root is appended: the guard must find the same Flux bindings first as this process.
        program = (
            f"import sys; sys.path.append({root!r}); "
            f"from {cancel_marked_jobs.__name__} import cancel_jobs_of; cancel_jobs_of({uri!r}, {mark!r})"
        )
        super().__init__('read -r _ && exit; exec "$@"', sys.executable, "-c", program)
