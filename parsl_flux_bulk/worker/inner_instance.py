"""The initial program of a Flux instance inside another: says where it is, and ends with the executor.

When this program ends, so does its instance. Its channel leads to the executor through the outer instance,
whose URI the job put aside before the inner one took the place of ``FLUX_URI``.
"""

from __future__ import annotations

import os

from parsl_flux_bulk.protocol import frames, variables
from parsl_flux_bulk.worker import channel as channels
from parsl_flux_bulk.worker import handshake


def main() -> int:
    """Introduce the instance, and wait for RETIRE; return the exit status."""
    environ = dict(os.environ)
    own = environ["FLUX_URI"]
    os.environ["FLUX_URI"] = environ[variables.OUTER_URI]
    channel = channels.connect(environ)
    channel.send(handshake.hello({**environ, "FLUX_URI": own}, slots=0))
    while True:
        channel.wait()
        for message in channel.receive():
            if any(kind == frames.RETIRE for kind, _, _, _ in frames.decode(message)):
                return 0
