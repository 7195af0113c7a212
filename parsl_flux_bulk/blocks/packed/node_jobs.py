"""A node job as its launcher sees it: jobspec, state, and the link to the job's program.

The state (any other transition raises IllegalTransition)::

    SUBMITTED ──> READY ──> RETIRING      RETIRING: it was told to end
        └───────────┴──────────┴──> CANCELED      and from any state it leaves the table when its job ends
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.instances.base import Completion, JobId, PeerId
from parsl_flux_bulk.instances.federation.members import Member
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.job_environment import base_environment
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.protocol import variables
from parsl_flux_bulk.protocol.states import State, Stateful

PING_PERIOD = 2.0
"""Seconds within which a node job notices the end of this process."""

PING_TIMEOUT = 86400.0
"""Seconds for which this process may not answer, stopped by Ctrl-Z for example."""

_PROGRAM = str(Path(__file__).resolve().parent / "node_job.py")


class NodeJobState(State):
    """See the module."""

    SUBMITTED = "submitted", "ready", "canceled"
    READY = "ready", "retiring", "canceled"
    RETIRING = "retiring", "canceled"
    CANCELED = ("canceled",)


@dataclass(slots=True)
class NodeJob(Stateful):
    """A node job, from its submission to its end."""

    job_id: JobId
    name: str
    state: State = NodeJobState.SUBMITTED
    peer: PeerId = None
    member: Member | None = None


class Link:
    """The connection to the program of a node job."""

    def __init__(self, peer: PeerId, call: Callable[[Callable[[Completion], None]], None]) -> None:
        self._peer = peer
        self._call = call
        self._lock = threading.Lock()
        self._unsent: list[protocol.Record] = []

    def send(self, records: list[protocol.Record]) -> bool:
        """Send records soon, together with those of other threads; from any thread."""
        with self._lock:
            idle = not self._unsent
            self._unsent += records
        if idle:
            self._call(self._flush)
        return True

    def _flush(self, completion: Completion) -> None:
        with self._lock:
            records, self._unsent = self._unsent, []
        if records:
            completion.send(self._peer, protocol.pack_message(records))


def node_job_jobspec(cores: int, gpus: int, token: int, channel: Mapping[str, str]) -> Jobspec:
    """Return the jobspec of a node job.

    Parameters
    ----------
    cores, gpus : int
        What it holds.
    token : int
        Its number, which its program repeats.
    channel : mapping
        Environment in which its program finds this process.
    """
    request = {"num_nodes": 1, "num_tasks": 1, "cores_per_task": cores, "gpus_per_task": gpus}
    return build(
        Resources.from_specification(request),
        [sys.executable, "-I", "-S", _PROGRAM],  # needs nothing that is installed
        environment=base_environment(os.environ),
        cwd=os.getcwd(),
        name="bulksubmit",
        shell_options={"mpi": "none"},
        own_environment={
            **channel,
            variables.TOKEN: str(token),
            variables.CORES: str(cores),
            variables.GPUS: str(gpus),
            variables.PING: str(PING_PERIOD),
            variables.PING_TIMEOUT: str(PING_TIMEOUT),
        },
    )
