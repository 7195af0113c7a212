"""States of the scheduler's records: the tables, and transitions that are not in them."""

import pytest
from world import SMALL, Function, Simulation, make_task

from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.scheduler.messages import CapacityChanged, PeerConnected, ResolveTask, StopPeer
from parsl_flux_bulk.scheduler.states import (
    IllegalTransition,
    PeerState,
    Stateful,
    TaskJobState,
    TaskState,
    WorkerJobState,
    WorkerState,
)

FIRST = {
    TaskState: TaskState.PENDING,
    TaskJobState: TaskJobState.HELD,
    WorkerJobState: WorkerJobState.STARTING,
    PeerState: PeerState.CONNECTED,
    WorkerState: WorkerState.OFFLINE,
}
LAST = {TaskState.DONE, TaskJobState.PARKED, WorkerJobState.ENDED, PeerState.LOST, PeerState.FINISHED}


class Record(Stateful):
    def __init__(self, state):
        self.state = state


@pytest.mark.parametrize("states", FIRST, ids=lambda states: states.__name__)
def test_every_state_can_be_reached_and_all_but_the_last_can_be_left(states):
    reached, to_visit = set(), [FIRST[states]]
    while to_visit:
        state = to_visit.pop()
        reached.add(state)
        to_visit += [successor for successor in state.successors if successor not in reached]
    assert reached == set(states)
    assert {state for state in states if not state.successors} == LAST & set(states)


@pytest.mark.parametrize("states", FIRST, ids=lambda states: states.__name__)
def test_every_name_in_the_table_is_a_state(states):
    names = {str(state) for state in states}
    assert all(set(state.value) <= names for state in states)


@pytest.mark.parametrize("before", [state for states in FIRST for state in states], ids=repr)
def test_transitions_are_those_of_the_table(before):
    for after in type(before):
        record = Record(before)
        if after in before.successors:
            record.move_to(after)
            assert record.state is after
        else:
            with pytest.raises(IllegalTransition, match=f"cannot become {after}"):
                record.move_to(after)
            assert record.state is before


def test_states_of_another_kind_are_illegal():
    with pytest.raises(IllegalTransition):
        Record(WorkerState.IDLE).move_to(PeerState.LOST)


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
