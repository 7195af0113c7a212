"""The tables of states of all records, and transitions that are not in them."""

import pytest

from parsl_flux_bulk.blocks.packed import node_jobs
from parsl_flux_bulk.instances.federation import members
from parsl_flux_bulk.instances.local import job as local_job
from parsl_flux_bulk.pipeline import job
from parsl_flux_bulk.protocol.states import IllegalTransition, Stateful
from parsl_flux_bulk.scheduler import states
from parsl_flux_bulk.worker import manager, slot

FIRST = {
    type(first): first
    for first in (
        job.JobState.CREATED,
        states.TaskState.PENDING,
        states.TaskJobState.HELD,
        states.WorkerJobState.STARTING,
        states.PeerState.CONNECTED,
        states.WorkerState.OFFLINE,
        slot.WorkerState.READY,
        manager.ManagerState.SERVING,
        local_job.JobState.WAITING,
        members.MemberState.STARTING,
        node_jobs.NodeJobState.SUBMITTED,
    )
}
LAST = {"ended", "done", "parked", "lost", "finished", "closed", "removed", "canceled"}


def name_of(kind):
    return f"{kind.__module__.rpartition('.')[2]}-{kind.__name__}"


class Record(Stateful):
    def __init__(self, state):
        self.state = state


@pytest.mark.parametrize("kind", FIRST, ids=name_of)
def test_every_state_can_be_reached_and_all_but_the_last_can_be_left(kind):
    reached, to_visit = set(), [FIRST[kind]]
    while to_visit:
        state = to_visit.pop()
        reached.add(state)
        to_visit += [successor for successor in state.successors if successor not in reached]
    assert reached == set(kind)
    assert {str(state) for state in kind if not state.successors} <= LAST


@pytest.mark.parametrize("kind", FIRST, ids=name_of)
def test_every_name_in_the_table_is_a_state(kind):
    names = {str(state) for state in kind}
    assert all(set(state.value) <= names for state in kind)


@pytest.mark.parametrize("before", [state for kind in FIRST for state in kind], ids=repr)
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
        Record(states.WorkerState.IDLE).move_to(states.PeerState.LOST)
