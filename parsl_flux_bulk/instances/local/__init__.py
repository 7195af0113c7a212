"""The embedded instance: this machine's own cores, run by a server process.

In the user's process: `client`, `server_process`; `jobspec` and `options` translate a jobspec into a
`job_plan`. All other modules run in the server. May import `instances.base` and the sockets beside it,
`jobspec`, `worker.pinning`, `worker.lifeline` and `protocol`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LocalInstance"]


def __getattr__(name: str) -> Any:
    if name == "LocalInstance":
        from parsl_flux_bulk.instances.local.client import LocalInstance

        return LocalInstance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
