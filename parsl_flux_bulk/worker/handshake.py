"""What every process of a job does alike, be it a pool or a rank: introduce itself, set itself up."""

from __future__ import annotations

import os
import sys

from parsl_flux_bulk.protocol import frames, variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def hello(environ: Mapping[str, str], slots: int) -> bytes:
    """Return the HELLO frame of this process."""
    about = {
        "rank": int(environ.get("FLUX_TASK_RANK") or 0),
        "size": int(environ.get("FLUX_JOB_SIZE") or 1),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        # Its broker's, by which nodes are told apart that share a host name.
        "node": environ.get("FLUX_URI"),
    }
    return frames.encode_json(frames.HELLO, slots, int(environ.get(variables.TOKEN) or 0), about)


def forget_environment() -> None:
    """Remove our own variables, so that the user's code, which may use this package too, sees none."""
    for name in [name for name in os.environ if name.startswith(variables.PREFIX)]:
        del os.environ[name]


def set_up(setup: dict[str, Any]) -> None:
    """Do what SETUP says for any process: complete ``sys.path``."""
    known = set(sys.path)
    sys.path += [entry for entry in setup.get("sys_path") or () if entry not in known]


def close_stdin() -> None:
    """Make whoever reads standard input find its end."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)


def flush_stdio() -> None:
    """Flush what was printed. The streams may be the user's own by now, and broken."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
