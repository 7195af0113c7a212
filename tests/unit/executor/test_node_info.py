"""Rows for Parsl's monitoring: which peers have them, and when they are sent."""

from __future__ import annotations

from typing import Any

import pytest
from parsl.monitoring.message_type import MessageType

from parsl_flux_bulk.executor.node_info import NodeInfo
from parsl_flux_bulk.jobspec.resources import Shape
from parsl_flux_bulk.scheduler.capacity import Allocation
from parsl_flux_bulk.scheduler.model import Peer, TaskJob, Worker, WorkerGroup, WorkerJob

RUN = "run"


class Hub:
    """A hub that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.nodes = NodeInfo(self.messages.append, RUN)

    def take(self) -> list[dict[str, Any]]:
        taken, self.messages[:] = self.messages[:], []
        assert all(kind is MessageType.NODE_INFO for kind, _ in taken)
        return [row for _, row in taken]


@pytest.fixture
def hub() -> Hub:
    return Hub()


def worker_job(name: str) -> WorkerJob:
    job = WorkerJob(1, Allocation(2), WorkerGroup(Shape(1)), 2, 0.0)
    job.name = name
    return job


def manager(job: WorkerJob | TaskJob, rank: int = 0) -> Peer:
    peer = Peer(("peer", rank), job, rank, "node1", 17 + rank, None, "3.11.7", "4")
    job.peers[rank] = peer
    if isinstance(job, WorkerJob):
        peer.workers = [Worker(peer, job, slot) for slot in range(2)]
    return peer


def test_a_manager_has_one_row_when_it_connects_and_one_when_it_is_lost(hub: Hub) -> None:
    job = worker_job("f1")
    peer = manager(job)
    hub.nodes.connected(peer, 64, 1 << 38)
    (first,) = hub.take()
    about = {key: value for key, value in first.items() if key not in ("timestamp", "last_heartbeat")}
    assert about == {
        "run_id": RUN, "hostname": "node1", "uid": "f1-node1-17", "block_id": "4", "cpu_count": 64,
        "total_memory": 1 << 38, "worker_count": 2, "python_v": "3.11.7", "active": True,
    }  # fmt: skip
    hub.nodes.lost(peer.peer_id)
    hub.nodes.lost(peer.peer_id)
    hub.nodes.job_ended(job)
    (last,) = hub.take()
    assert {key for key in first if first[key] != last[key]} <= {"active", "timestamp", "last_heartbeat"}
    assert last["active"] is False and last["timestamp"] >= first["timestamp"]


def test_managers_of_a_job_that_ended_are_lost(hub: Hub) -> None:
    job = worker_job("f1")
    for rank in range(3):
        hub.nodes.connected(manager(job, rank), 1, 1)
    hub.take()
    hub.nodes.job_ended(job)
    assert [(row["uid"], row["active"]) for row in hub.take()] == [
        (f"f1-node1-{17 + rank}", False) for rank in range(3)
    ]


def test_the_row_waits_for_the_id_of_the_job_and_has_the_time_of_the_connection(hub: Hub) -> None:
    job = worker_job("")
    peer = manager(job)
    hub.nodes.connected(peer, 1, 1)
    assert hub.take() == []
    job.name = "f1"
    hub.nodes.job_submitted(job)
    hub.nodes.job_submitted(job)
    (row,) = hub.take()
    assert (row["uid"], row["active"]) == ("f1-node1-17", True)
    hub.nodes.lost(peer.peer_id)
    assert [row["active"] for row in hub.take()] == [False]


def test_a_manager_that_was_lost_before_the_id_was_known_ends_with_its_job(hub: Hub) -> None:
    job = worker_job("")
    peer = manager(job)
    hub.nodes.connected(peer, 1, 1)
    hub.nodes.lost(peer.peer_id)
    job.name = "f1"
    hub.nodes.job_submitted(job)
    hub.nodes.job_ended(job)
    assert [row["active"] for row in hub.take()] == [True, False]


def test_a_task_job_has_a_row_for_its_first_rank_only(hub: Hub) -> None:
    task: Any = None
    job = TaskJob(1, Allocation(2), task)
    job.name = "f2"
    for rank in (1, 2, 3):
        hub.nodes.connected(manager(job, rank), 1, 1)
    assert hub.take() == []
    hub.nodes.connected(manager(job, 0), 1, 1)
    (row,) = hub.take()
    assert (row["uid"], row["worker_count"]) == ("f2-node1-17", 1)
