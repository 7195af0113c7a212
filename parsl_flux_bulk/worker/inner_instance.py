"""The initial program of a Flux instance inside another: announces its URI, and exits with the executor.

The instance ends when this program does. The channel leads to the executor through the outer instance, whose
URI the job saved before the inner instance replaced ``FLUX_URI``.
"""

from __future__ import annotations

import os

from parsl_flux_bulk.protocol import frames, variables
from parsl_flux_bulk.worker import handshake


def main() -> int:
    """Introduce the instance and wait for RETIRE; return the exit status."""
    environ = dict(os.environ)
    os.environ["FLUX_URI"] = environ[variables.OUTER_URI]
    channel = handshake.introduce(environ)
    while True:
        channel.wait()
        for message in channel.receive():
            if any(kind == frames.RETIRE for kind, _, _, _ in frames.decode(message)):
                return 0
