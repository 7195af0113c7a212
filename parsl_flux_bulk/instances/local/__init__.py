"""The embedded instance: this machine's own cores, run by a server process.

In the user's process: `client`, `server_process`; `jobspec` and `options` translate
a jobspec into a `job_plan`. In the server: `server`, `allocator`, `job`, `pinning`, `output`,
`kept_output`, `processes`. May import `instances.base` and the sockets beside it, `jobspec`,
`worker.pinning` and `protocol`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LocalInstance"]


def __getattr__(name: str) -> Any:
    if name == "LocalInstance":
        from parsl_flux_bulk.instances.local.client import LocalInstance

        return LocalInstance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
