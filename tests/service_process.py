"""``flux_service.py``, the executor's end of a channel over Flux, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers import PROJECT

SERVICE = PROJECT / "tests" / "flux_service.py"


class Service:
    """A started service; killed at the end of a ``with`` block.

    Attributes
    ----------
    last : Path
        File with the last message that was received.
    environment : dict
        Variables that lead to the service.
    """

    def __init__(self, uri: str, folder: Path, answer: bytes = b"welcome") -> None:
        (folder / "answer").write_bytes(answer)
        self.last = folder / "last"
        self.process = subprocess.Popen(
            [sys.executable, str(SERVICE), str(folder / "answer"), str(folder)],
            env={**os.environ, "FLUX_URI": uri},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
        self.environment = {"FLUX_URI": uri, "PARSL_FLUX_BULK_CHANNEL": f"flux:0:{self._line()}"}

    def wait_for(self, line: str) -> None:
        """Wait until the service has printed a line."""
        while (read := self._line()) != line:
            assert read, f"the service ended before {line!r}"

    def _line(self) -> str:
        return self._stdout.readline().strip()

    def kill(self) -> None:
        """Kill the service; may be called twice."""
        self.process.kill()
        self.process.wait()
        self._stdout.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
