"""Start-up that managers, ranks and node jobs share: connect, say HELLO, prepare for user code."""

from __future__ import annotations

import faulthandler
import os
import sys

from parsl_flux_bulk.protocol import frames, variables
from parsl_flux_bulk.worker.channel import Channel, ChannelLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_LAUNCHER_VARIABLES = ("PMI_FD", "PMI_RANK", "PMI_SIZE", "FLUX_PMI_LIBRARY_PATH", "FLUX_KVS_NAMESPACE")

BLOCK_ID = "PARSL_WORKER_BLOCK_ID"

DEFAULT_PING = 10.0
# A dead executor is detected at once (ENOSYS). This timeout covers an executor that cannot be reached, and
# must not end jobs of a Python script whose threads all wait for a long call to return.
DEFAULT_PING_TIMEOUT = 120.0


def connect(environ: Mapping[str, str]) -> Channel:
    """Open the channel that the environment names.

    Only the module of that transport is imported: every process of every job pays for imports, often on
    a shared file system.

    Raises
    ------
    ChannelLost
        Nobody listens at the address, or the address is not valid.
    """
    name = environ.get(variables.SOCKET, "")
    if name:
        from parsl_flux_bulk.worker.unix_channel import UnixChannel

        try:
            return UnixChannel(f"\0{name}")
        except ChannelLost:
            pass  # the executor is on another node
    address = environ.get(variables.CHANNEL, "")
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        from parsl_flux_bulk.worker.unix_channel import UnixChannel

        return UnixChannel(rest)
    rank, _, service = rest.partition(":")
    if scheme == "flux" and rank.isdecimal() and service:
        from parsl_flux_bulk.worker.flux_channel import FluxChannel

        return FluxChannel(
            int(rank),
            service,
            # In a nested instance, FLUX_URI is that of the instance of the task.
            uri=environ.get(variables.OUTER_URI) or environ.get("FLUX_URI", ""),
            library=environ.get(variables.LIBFLUX, ""),
            ping=float(environ.get(variables.PING) or DEFAULT_PING),
            ping_timeout=float(environ.get(variables.PING_TIMEOUT) or DEFAULT_PING_TIMEOUT),
        )
    raise ChannelLost(f"{variables.CHANNEL} is {address!r}: expected unix:PATH or flux:RANK:SERVICE")


def introduce(environ: Mapping[str, str], workers: int = 0) -> Channel:
    """Connect to the executor and send HELLO."""
    channel = connect(environ)
    about = {
        "rank": int(environ.get("FLUX_TASK_RANK") or 0),
        "size": int(environ.get("FLUX_JOB_SIZE") or 1),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        # The broker's URI tells apart nodes that share a host name.
        "node": environ.get("FLUX_URI"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "block": environ.get(BLOCK_ID) or "",
        "cpus": os.cpu_count() or 1,
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
    token = int(environ.get(variables.TOKEN) or 0)
    channel.send(frames.encode_json(frames.HELLO, workers, token, about))
    return channel


def open_output(environ: Mapping[str, str]) -> None:
    """Make files standard output and error, instead of the pipes to Flux's shell.

    The shell takes seconds for what a file takes at once; and a task that prints fails if the shell dies.
    Every node has files of its own, because nodes cannot append to one. Without a path, or if the files
    cannot be opened, the streams stay as they are.
    """
    base = environ.get(variables.OUTPUT)
    if not base:
        return
    rank = environ.get("FLUX_TASK_RANK", "0")
    if rank != "0":
        base += f"-{rank}"
    for suffix, stream in ((".out", 1), (".err", 2)):
        try:
            file = os.open(base + suffix, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError:
            continue
        os.dup2(file, stream)
        os.close(file)


def prepare_for_user_code() -> None:
    """Hide the package's variables, redirect stdin to /dev/null, print tracebacks of fatal signals."""
    # User code may use this package too.
    for name in [name for name in os.environ if name.startswith(variables.PREFIX)]:
        del os.environ[name]
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)
    faulthandler.enable()


def hide_launcher() -> None:
    """Hide what Flux's shell tells ranks, and the namespace of its job, from code that is no MPI rank.

    A program that is built with MPI would take the descriptor in ``PMI_FD`` for one to a launcher, and talk
    PMI into whatever file has that number by now.
    """
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


def set_worker_variables(rank: int | None, count: int) -> None:
    """Set the variables with which HighThroughputExecutor's workers tell tasks where they run."""
    os.environ["PARSL_WORKER_COUNT"] = str(count)
    os.environ["PARSL_WORKER_POOL_ID"] = f"{os.uname().nodename}-{os.getpid()}"
    os.environ.setdefault(BLOCK_ID, "")
    if rank is not None:
        os.environ["PARSL_WORKER_RANK"] = str(rank)


def extend_sys_path(setup: dict[str, Any]) -> None:
    """Append the executor's ``sys.path`` entries that this process lacks."""
    known = set(sys.path)
    sys.path += [entry for entry in setup.get("sys_path") or () if entry not in known]


def flush_stdio() -> None:
    """Flush stdout and stderr, which user code may have replaced or broken."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
