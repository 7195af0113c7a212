"""Rows of the table ``node`` of Parsl's monitoring: when a manager connects, and when it is lost.

The columns are those of HighThroughputExecutor's managers. A task job has rows, too, so that the Flux job id
of every try is in the database.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from parsl.monitoring.message_type import MessageType

from parsl_flux_bulk.instances.base import PeerId
from parsl_flux_bulk.scheduler.model import Peer, TaskJob, WorkerJob


class NodeInfo:
    """Send NODE_INFO messages to the monitoring hub; in the completion thread.

    Parameters
    ----------
    send : callable
        Sends a message to the hub, without waiting.
    run_id : str
        Of the DataFlowKernel.
    """

    def __init__(self, send: Callable[[object], None], run_id: str) -> None:
        self._send = send
        self._run_id = run_id
        self._rows: dict[PeerId, dict[str, Any]] = {}
        self._unnamed: dict[WorkerJob | TaskJob, list[Peer]] = {}

    def connected(self, peer: Peer, cpus: int, memory: int) -> None:
        """Send the row of a manager, or of rank 0 of a task job, that connected.

        The column ``uid`` is the job id, as people write it, a hyphen, and the value of
        ``PARSL_WORKER_POOL_ID``.

        Parameters
        ----------
        cpus : int
            CPUs of the node.
        memory : int
            Memory of the node, in bytes.
        """
        job = peer.job
        if isinstance(job, TaskJob) and peer.rank:
            return
        now = datetime.datetime.now()
        self._rows[peer.peer_id] = {
            "run_id": self._run_id,
            "hostname": peer.host,
            # As in the table of tries, whose rows have PARSL_WORKER_BLOCK_ID.
            "block_id": peer.block,
            "cpu_count": cpus,
            "total_memory": memory,
            "worker_count": max(1, len(peer.workers)),
            "python_v": peer.python,
            "active": True,
            "timestamp": now,
            "last_heartbeat": now,
        }
        if job.name:
            self._send_first(peer)
        else:
            # A job may start before the reply to its submission arrives.
            self._unnamed.setdefault(job, []).append(peer)

    def job_submitted(self, job: WorkerJob | TaskJob) -> None:
        """Send the rows of peers that connected before the id of their job was known."""
        for peer in self._unnamed.pop(job, ()):
            self._send_first(peer)

    def lost(self, peer_id: PeerId) -> None:
        """Send the second row of a peer whose connection closed; only the first call counts."""
        row = self._rows.get(peer_id, {})
        if "uid" in row:
            del self._rows[peer_id]
            now = datetime.datetime.now()
            self._send_row({**row, "active": False, "timestamp": now, "last_heartbeat": now})

    def job_ended(self, job: WorkerJob | TaskJob) -> None:
        """Send the second rows of the peers of a job that ended."""
        for peer in job.peers.values():
            self.lost(peer.peer_id)

    def _send_first(self, peer: Peer) -> None:
        row = self._rows[peer.peer_id]
        row["uid"] = f"{peer.job.name}-{peer.name}"
        self._send_row(dict(row))

    def _send_row(self, row: dict[str, Any]) -> None:
        self._send((MessageType.NODE_INFO, row))
