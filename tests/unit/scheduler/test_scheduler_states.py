"""States of the scheduler's records."""

import pytest
from world import SMALL, Function, Simulation, make_task

from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.protocol.states import IllegalTransition
from parsl_flux_bulk.scheduler.messages import CapacityChanged, PeerConnected, ResolveTask, StopPeer
from parsl_flux_bulk.scheduler.states import PeerState, TaskState, WorkerJobState, WorkerState


def test_a_task_ends_once():
    task = make_task(7, SMALL, Function())
    task.move_to(TaskState.DONE)
    with pytest.raises(IllegalTransition, match=r"<CallTask 7 done> cannot become assigned; .*: none"):
        task.move_to(TaskState.ASSIGNED)


def test_records_pass_through_their_states():
    world = Simulation(cores=1, worker_idle_time=1.0)
    world.submit(1, function=Function(1.0))
    world.run(until=lambda: world.worker_jobs())
    (job,) = world.worker_jobs()
    assert job.state is WorkerJobState.STARTING
    world.run(until=lambda: world.starts)
    (peer,) = job.peers.values()
    (worker,) = peer.workers
    assert (job.state, peer.state) == (WorkerJobState.SERVING, PeerState.CONNECTED)
    assert worker.state is WorkerState.BUSY
    world.run_all()
    world.run(for_=0.5)
    assert worker.state is WorkerState.IDLE
    world.run(until=lambda: world.counts[StopPeer])
    assert (job.state, worker.state) == (WorkerJobState.STOPPING, WorkerState.OFFLINE)
    world.run()
    assert (job.state, peer.state) == (WorkerJobState.ENDED, PeerState.LOST)


def test_events_and_instructions_are_values():
    assert PeerConnected("p", 1, 2, "node0") == PeerConnected("p", 1, 2, "node0")
    assert repr(StopPeer("p")) == "StopPeer(peer='p')"
    assert {CapacityChanged(Capacity(1, 2, 0)), CapacityChanged(Capacity(1, 2, 0))} == {
        CapacityChanged(Capacity(1, 2, 0))
    }
    task = make_task(1, SMALL, Function())
    assert ResolveTask(task, b"value") == ResolveTask(task, b"value") != ResolveTask(task, b"other")
