"""The federation over members that a test makes up: placement, ids, lost members, capacity, the channel."""

from __future__ import annotations

import threading
import time

import pytest
from fake_instance import FakeInstance, request

from parsl_flux_bulk.errors import InstanceLost, OutputUnavailable
from parsl_flux_bulk.instances.base import (
    START,
    Capacity,
    CapacityChanged,
    EndCause,
    JobEnded,
    JobResult,
    JobStatus,
    PeerLost,
    PeerMessage,
    Refusal,
)
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.instances.federation.members import Member, MemberState
from parsl_flux_bulk.jobspec.jobspec import Demand
from parsl_flux_bulk.protocol.states import IllegalTransition

DONE = JobResult(JobStatus.COMPLETED, exit_code=0)
BOUND = 60.0


class Bench:
    """A federation, its two ends, and its members."""

    def __init__(self):
        self.federation = Federation()
        self.completion = self.federation.completion()
        self.connection = self.federation.connect()

    def add(self, name="b", left=None, environment=None, **size):
        instance = FakeInstance(**size)
        ends_at = None if left is None else time.time() + left
        member = self.federation.add(name, instance, ends_at=ends_at, environment=environment)
        return instance, member

    def submit(self, *requests):
        answers = self.connection.submit(list(requests))
        for answer in answers:
            if not isinstance(answer, Refusal):
                self.completion.watch(answer)
        return answers

    def events(self, kind, count=1):
        """Return the next events of a kind; ignore others."""
        found = []
        deadline = time.monotonic() + BOUND
        while len(found) < count and time.monotonic() < deadline:
            found += [event for event in self.completion.poll(0.2) if isinstance(event, kind)]
        assert len(found) == count
        return found

    def where(self, job_id):
        member = self.federation.registry.member_of(job_id)
        return member and member.name


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.completion.close()
    bench.federation.close()


# -- what a jobspec asks for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request(), Demand(1, 1, 0)),
        (request(2, tasks=3, gpus=1), Demand(1, 6, 3)),
        (request(2, tasks=4, nodes=2), Demand(2, 16, 0)),
        (request(1, nodes=3, exclusive=True, duration=60), Demand(3, 3, 0, True, 60.0)),
        (request(duration=None), Demand(1, 1, 0)),
    ],
)
def test_demand_is_the_sum_of_what_is_nested(asked, expected):
    assert asked.jobspec.demand == expected


# -- where jobs go -----------------------------------------------------------------------------------


def test_jobs_fill_one_member_before_another_one_gets_any(bench):
    bench.add("a", cores=4)
    bench.add("b", cores=4)
    ids = [bench.submit(request(2))[0] for _ in range(4)]
    names = [bench.where(job_id) for job_id in ids]
    assert names[0] == names[1] != names[2] == names[3]


def test_what_has_no_room_now_waits_where_the_least_waits(bench):
    a, _ = bench.add("a", cores=4)
    bench.add("b", cores=2)
    ids = bench.submit(*(request(2) for _ in range(3)))
    assert sorted(map(bench.where, ids)) == ["a", "a", "b"]
    # Both are full: two more go where no more than one waits.
    assert sorted(map(bench.where, bench.submit(request(2), request(2)))) == ["a", "b"]
    assert len(a.requests) == 3


def test_room_that_a_job_leaves_is_used_again(bench):
    a, member = bench.add("a", cores=2)
    (first,) = bench.submit(request(2))
    bench.add("b", cores=2)
    a.tell(JobEnded(1, DONE))
    assert bench.events(JobEnded) == [JobEnded(first, DONE)]
    assert (member.free_cores, member.jobs) == (2, {})
    assert bench.federation.registry.wait_empty(member, 0)


def test_a_refusal_of_the_member_leaves_its_room_free(bench):
    _, member = bench.add()
    assert bench.submit(request(note="refuse")) == [Refusal("I refuse")]
    assert member.free_cores == 2


def test_whole_nodes_count_with_all_their_cores(bench):
    _, member = bench.add(cores=8, nodes=2)
    bench.submit(request(1, nodes=1, exclusive=True))
    assert member.free_cores == 8


@pytest.mark.parametrize(
    "too_much", [request(5), request(1, nodes=2), request(1, gpus=1), request(2, tasks=3)]
)
def test_what_no_member_can_ever_run_is_refused_in_words(bench, too_much):
    bench.add("a", cores=4)
    bench.add("b", cores=2)
    (refusal,) = bench.submit(too_much)
    assert isinstance(refusal, Refusal)
    assert "unsatisfiable request: no instance has" in refusal.reason
    assert "the largest has 1 node(s), 4 core(s), 0 GPU(s)" in refusal.reason


def test_the_larger_member_gets_what_only_it_can_run(bench):
    bench.add("small", cores=2)
    bench.add("large", cores=2, nodes=2, gpus=1)
    ids = bench.submit(request(1, nodes=2), request(1, gpus=1), request(4))
    assert [bench.where(job_id) for job_id in ids] == ["large"] * 3


# -- time ---------------------------------------------------------------------------------------------


def test_a_job_does_not_go_where_its_duration_does_not_fit(bench):
    bench.add("short", left=60, cores=8)
    bench.add("long", left=3600, cores=2)
    bench.add("unknown", cores=2)
    ids = bench.submit(*(request(duration=600) for _ in range(4)), request(duration=30))
    names = [bench.where(job_id) for job_id in ids]
    assert sorted(names[:4]) == ["long", "long", "unknown", "unknown"]
    assert names[4] == "short"


def test_a_job_longer_than_any_block_is_refused(bench):
    bench.add("a", left=60)
    (refusal,) = bench.submit(request(duration=600))
    assert isinstance(refusal, Refusal) and "for 600 s" in refusal.reason


def test_a_job_that_only_a_fresh_block_has_time_for_is_given_back_until_there_is_one(bench):
    _, old = bench.add("old", left=60)
    old.ends_at -= 50  # so much of its time has passed
    (job_id,) = bench.submit(request(duration=30))
    (ended,) = bench.events(JobEnded)
    assert ended.job_id == job_id
    assert (ended.result.exception, ended.result.started) == (EndCause.NO_BLOCK, False)


def test_a_fresh_block_that_comes_meanwhile_makes_it_worth_another_attempt(bench):
    _, old = bench.add("old", left=60)
    old.ends_at -= 50
    (job_id,) = bench.connection.submit([request(duration=30)])
    bench.add("fresh", left=60)
    bench.completion.watch(job_id)
    (ended,) = bench.events(JobEnded)
    assert (ended.result.exception, ended.result.started) == (EndCause.BLOCK_LOST, False)


# -- members come and go -------------------------------------------------------------------------------


def test_capacity_follows_the_members(bench):
    assert bench.connection.capacity() == Capacity(0, 0, 0)
    _, a = bench.add("a", cores=2, nodes=2, gpus=1)
    bench.add("b", cores=4)
    bench.federation.registry.drain(a)
    bench.federation.registry.remove(a, "scaled in")
    told = [event.capacity for event in bench.events(CapacityChanged, 4)]
    assert told == [Capacity(2, 4, 2), Capacity(3, 8, 2), Capacity(1, 4, 0), Capacity(1, 4, 0)]
    assert bench.connection.capacity() == Capacity(1, 4, 0)


def test_a_member_that_closes_gets_no_jobs_and_ends_those_that_it_has(bench):
    a, member = bench.add("a")
    (job_id,) = bench.submit(request())
    bench.federation.registry.drain(member)
    bench.add("b")
    assert bench.where(bench.submit(request())[0]) == "b"
    assert not bench.federation.registry.wait_empty(member, 0)
    a.tell(JobEnded(1, DONE))
    assert bench.events(JobEnded) == [JobEnded(job_id, DONE)]


def test_without_members_a_job_is_lost_before_it_started(bench):
    (job_id,) = bench.submit(request())
    (ended,) = bench.events(JobEnded)
    assert ended.job_id == job_id
    assert (ended.result.exception, ended.result.started) == (EndCause.BLOCK_LOST, False)


def test_a_lost_member_ends_its_jobs_and_peers_and_nobody_elses(bench):
    a, _ = bench.add("a", cores=1)
    b, _ = bench.add("b", cores=1)
    first, second = bench.submit(request(), request())
    in_a, in_b = (first, second) if bench.where(first) == "a" else (second, first)
    a.tell(PeerMessage("p", b"a"))
    b.tell(PeerMessage("p", b"b"))
    peers = {message.body: message.peer for message in bench.events(PeerMessage, 2)}
    a.lose()
    (lost,) = bench.events(PeerLost)
    assert lost.peer == peers[b"a"]
    b.tell(JobEnded(1, DONE))
    assert bench.events(JobEnded) == [JobEnded(in_b, DONE)]
    assert bench.where(in_a) is None
    assert a.closed and not b.closed


def test_how_a_lost_members_jobs_end(bench):
    a, _ = bench.add("a")
    (job_id,) = bench.submit(request())
    a.lose()
    (ended,) = bench.events(JobEnded)
    assert ended.job_id == job_id
    assert ended.result.exception == EndCause.BLOCK_LOST
    assert ended.result.note == "block a: its host died"


def test_a_member_that_is_lost_while_jobs_are_submitted_takes_none_of_them(bench):
    a, _ = bench.add("a")
    a.gone = True  # not noticed yet
    (job_id,) = bench.submit(request())
    (ended,) = bench.events(JobEnded)
    assert ended.job_id == job_id
    assert (ended.result.exception, ended.result.started) == (EndCause.BLOCK_LOST, False)
    assert bench.federation.registry.members == []


def test_a_job_whose_member_is_lost_before_it_is_watched_ends(bench):
    _, member = bench.add()
    (job_id,) = bench.connection.submit([request()])
    bench.federation.registry.remove(member, "gone")
    bench.completion.watch(job_id)
    (ended,) = bench.events(JobEnded)
    assert (ended.job_id, ended.result.exception) == (job_id, EndCause.BLOCK_LOST)


def test_removing_twice_is_fine_and_wakes_who_waits_for_the_end(bench):
    _, member = bench.add()
    bench.submit(request())
    empty = []
    waiting = threading.Thread(
        target=lambda: empty.append(bench.federation.registry.wait_empty(member, BOUND))
    )
    waiting.start()
    bench.federation.registry.remove(member, "first")
    bench.federation.registry.remove(member, "second")
    waiting.join(BOUND)
    assert empty == [True]
    assert (member.state, member.removed_because) == (MemberState.REMOVED, "first")


def test_a_members_state_changes_only_as_its_table_says():
    member = Member(1, "a", FakeInstance(), Capacity(1, 2, 0), None, {})
    with pytest.raises(IllegalTransition, match="<Member a starting> cannot become draining"):
        member.move_to(MemberState.DRAINING)
    for state in (MemberState.READY, MemberState.DRAINING, MemberState.REMOVED):
        member.move_to(state)
    with pytest.raises(IllegalTransition, match="<Member a removed> cannot become ready"):
        member.move_to(MemberState.READY)


def test_an_instance_that_is_lost_while_it_is_added_is_no_member(bench):
    lost = FakeInstance()
    lost.completion = lambda: (_ for _ in ()).throw(InstanceLost("its host died"))
    with pytest.raises(InstanceLost, match="its host died"):
        bench.federation.add("a", lost)
    assert bench.federation.registry.members == []
    assert lost.closed


# -- ids, cancel, output, environment, channel -----------------------------------------------------------


def test_the_same_id_in_two_members_is_two_ids_here(bench):
    a, _ = bench.add("a", cores=1)
    b, _ = bench.add("b", cores=1)
    ids = bench.submit(request(), request())
    assert len(set(ids)) == 2
    assert {bench.federation.job_name(job_id) for job_id in ids} == {"f1"}
    assert [bench.connection.output(job_id, START).stdout for job_id in ids] == ["out of 1"] * 2
    bench.connection.cancel([ids[0]], "not wanted")
    there, elsewhere = (a, b) if bench.where(ids[0]) == "a" else (b, a)
    assert (there.canceled, elsewhere.canceled) == ([1], [])


def test_what_is_gone_is_passed_over(bench):
    instance, member = bench.add()
    (job_id,) = bench.submit(request())
    instance.tell(PeerMessage("p", b"hello"))
    (message,) = bench.events(PeerMessage)
    bench.federation.registry.remove(member, "gone")
    bench.connection.cancel([job_id, 7], "not wanted")
    with pytest.raises(OutputUnavailable, match="is lost with its block"):
        bench.connection.output(job_id, START)
    assert bench.federation.job_name(job_id) == "1"
    bench.completion.send(message.peer, b"ignored")
    assert instance.sent == []


def test_a_member_says_which_jobs_are_its(bench):
    _, a = bench.add("a", cores=1)
    _, b = bench.add("b", cores=1)
    for job_id in bench.submit(request(), request()):
        assert a.has_job(job_id) != b.has_job(job_id)


def test_jobs_begin_with_the_environment_of_their_member_and_a_jobspec_wins(bench):
    a, _ = bench.add(environment={"FROM_BLOCK": "1", "BOTH": "block"})
    bench.submit(request(environment={"BOTH": "jobspec", "OWN": "2"}))
    assert a.environment(1) == {"FROM_BLOCK": "1", "BOTH": "jobspec", "OWN": "2"}


def test_workers_get_the_address_of_the_channel_in_their_member(bench):
    key = bench.completion.channel().environment
    for name in "ab":
        bench.add(name, cores=1)
    bench.submit(request(environment=key), request(environment=key))
    for member in bench.federation.registry.members:
        address = member.instance.environment(1)["PARSL_FLUX_BULK_CHANNEL"]
        assert address == f"to {id(member.instance)}"


def test_messages_reach_the_peer_of_the_member_that_it_is_in(bench):
    a, _ = bench.add("a")
    b, _ = bench.add("b")
    a.tell(PeerMessage("p", b"from a"))
    (message,) = bench.events(PeerMessage)
    assert message.body == b"from a"
    bench.completion.send(message.peer, b"answer")
    deadline = time.monotonic() + BOUND
    while not a.sent and time.monotonic() < deadline:
        time.sleep(0.005)
    assert (a.sent, b.sent) == ([("p", b"answer")], [])


def test_a_completion_that_is_opened_later_serves_the_members_that_are_there(bench):
    a, _ = bench.add("a")
    second = bench.federation.completion()
    a.tell(PeerMessage("p", b"x"), PeerMessage("q", b"y"))
    heard = []
    deadline = time.monotonic() + BOUND
    while len(heard) < 2 and time.monotonic() < deadline:
        heard += [e for e in second.poll(0.05) + bench.completion.poll(0.05) if isinstance(e, PeerMessage)]
    assert {message.body for message in heard} == {b"x", b"y"}
    second.close()
    with pytest.raises(InstanceLost):
        second.poll(0)


def test_wake_ups_end_a_wait_and_coalesce(bench):
    bench.completion.poll(0)
    bench.completion.wake()
    bench.completion.wake()
    assert bench.completion.poll(None) == []
    began = time.monotonic()
    assert bench.completion.poll(0.05) == []
    assert time.monotonic() - began >= 0.05
