"""What cancels an executor's jobs, in a Flux instance that is not its own, if it dies without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from parsl_flux_bulk.instances.flux.broker import close_in_forks


class Guard:
    """A process that sleeps in the shell until we have died; then it imports Flux, and cancels.

    Parameters
    ----------
    uri : str
        Of the instance.
    address : str
        Of the channel whose executor's jobs are meant.
    """

    def __init__(self, uri: str, address: str) -> None:
        root = str(Path(__file__).resolve().parents[3])
        program = (
            f"import sys; sys.path.append({root!r}); "
            "from parsl_flux_bulk.instances.flux.instance import cancel_jobs_of; "
            f"cancel_jobs_of({uri!r}, {address!r})"
        )
        self._process = subprocess.Popen(
            ["sh", "-c", 'read -r _ && exit; exec "$@"', "sh", sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        close_in_forks(self._process)

    def dismiss(self) -> None:
        """End it: nothing is left to cancel."""
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.write(b"done\n")
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.wait()
