"""A slot's worker: allowed and illegal transitions of its state."""

from __future__ import annotations

import math
import os
import socket
from collections import deque

import pytest

from parsl_flux_bulk.protocol import frames
from parsl_flux_bulk.protocol.states import IllegalTransition
from parsl_flux_bulk.worker import packets
from parsl_flux_bulk.worker.slot import Slot, Worker, WorkerState

FUNCTION = packets.function_packet(memoryview(frames.encode(frames.FUNCTION, 0, 1, b"Pfunction")))


class Ends:
    """A worker without a process, and the ends that its process would have."""

    def __init__(self, limit: float = math.inf) -> None:
        tasks, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outcomes, self.outcomes = os.pipe()
        self.direct = self.lone = 0
        self.worker = Worker(1, tasks, queue, outcomes, -1, limit, lambda: (self.direct, self.lone))
        self.tasks, self.queue = tasks, queue

    def give(self, *task_ids: int, size: int = 10) -> deque[packets.Packet]:
        encoded = [frames.encode_task(0, id, 1, b"x" * size) for id in task_ids]
        waiting = deque(
            packets.task_packet(id, memoryview(f)) for id, f in zip(task_ids, encoded, strict=True)
        )
        self.worker.give(waiting, {FUNCTION.function_id: FUNCTION})
        return waiting

    def received(self) -> list[bytes]:
        """What the worker has been sent, and has not received yet."""
        found = []
        while True:
            try:
                found.append(packets.receive(self.queue, socket.MSG_DONTWAIT)[0])
            except BlockingIOError:
                return found

    def answer(self, task_id: int) -> bytes:
        outcome = frames.encode(frames.OUTCOME, 0, task_id, b"R")
        os.write(self.outcomes, outcome)
        return outcome


@pytest.fixture
def ends():
    ends = Ends()
    yield ends
    ends.worker.close()
    os.close(ends.outcomes)


@pytest.fixture
def limited():
    ends = Ends(limit=2)
    yield ends
    ends.worker.close()
    os.close(ends.outcomes)


def test_a_function_is_sent_again_if_the_worker_has_received_a_task_behind_it(ends, monkeypatch):
    ends.give(1, 2)
    receive = packets.receive

    def receive_and_lose_the_race(sock, flags=0):
        content = receive(sock, flags)
        monkeypatch.setattr(packets, "receive", receive)
        assert content[0][0] == frames.FUNCTION
        kind, _, task_id, _ = frames.HEADER.unpack_from(receive(sock)[0])
        assert (kind, task_id) == (frames.TASK, 1)  # by the worker
        return content

    monkeypatch.setattr(packets, "receive", receive_and_lose_the_race)
    assert [packet.task_id for packet in ends.worker.take_back()] == [2]
    assert ends.received() == [FUNCTION.content]


def test_a_function_that_no_task_needs_is_not_sent_again(ends):
    ends.give(1, 2)
    assert len(ends.worker.take_back()) == 2
    assert ends.received() == []


def test_a_full_queue_blocks_until_packets_are_taken_back(ends):
    waiting = ends.give(*range(1, 100), size=10_000)
    assert ends.worker.state is WorkerState.BLOCKED
    given = len(ends.worker.given)
    assert 0 < given < 99 and len(waiting) == 99 - given

    assert [packet.task_id for packet in ends.worker.take_back()] == list(range(1, given + 1))
    assert ends.worker.state is WorkerState.READY and not ends.worker.given


def test_a_worker_finishes_with_its_last_task(limited):
    waiting = limited.give(1, 2, 3)
    assert [packet.task_id for packet in waiting] == [3]
    outcomes = limited.answer(1) + limited.answer(2)

    assert limited.worker.read() == outcomes
    assert limited.worker.state is WorkerState.FINISHING and limited.worker.reached_limit
    assert limited.worker.read() is None


def test_a_killed_worker_is_given_nothing(ends):
    ends.worker.move_to(WorkerState.KILLED)

    assert len(ends.give(1, 2)) == 2


@pytest.mark.parametrize(
    ("state", "then"),
    [
        (WorkerState.KILLED, WorkerState.READY),
        (WorkerState.KILLED, WorkerState.FINISHING),
        (WorkerState.FINISHING, WorkerState.READY),
        (WorkerState.FINISHING, WorkerState.BLOCKED),
    ],
)
def test_an_illegal_transition_raises(ends, state, then):
    ends.worker.move_to(state)

    with pytest.raises(IllegalTransition, match=f"{state}> cannot become {then}"):
        ends.worker.move_to(then)
    assert ends.worker.state is state


def test_removing_a_task_keeps_the_order_of_the_others():
    slot = Slot(0)
    slot.waiting.extend(packets.Packet(id, b"", b"") for id in (1, 2, 3))

    assert slot.remove(2) == [2] and slot.remove(2) == []
    assert slot.remove(0) == [1, 3] and not slot.waiting


def test_outcomes_that_the_worker_sent_itself_are_noted(ends):
    ends.give(1, 2, 3)
    outcome = ends.answer(1)
    ends.direct = 2
    ends.give(4)
    assert list(ends.worker.given) == [3, 4]
    assert ends.worker.read() == outcome, "passed on although it is noted already"
    ends.direct = 4
    ends.give()
    assert not ends.worker.given


def test_a_task_that_came_by_the_lane_is_taken_back_as_one_of_the_managers(ends):
    ends.give(1)
    ends.received()
    ends.tasks.send(frames.encode_task(0, 2, 1, b"call", frames.LONE))
    (packet,) = ends.worker.take_back()
    assert (packet.task_id, packet.function_id) == (2, FUNCTION.function_id)
    assert packet.content == frames.encode_task(0, 2, 1, b"call")
    assert not ends.worker.has(2)


def test_the_worker_has_what_it_was_given_and_what_it_runs_from_its_lane(ends):
    ends.give(1)
    ends.lone = 2
    assert [ends.worker.has(task_id) for task_id in (1, 2, 3)] == [True, True, False]


def test_nothing_can_be_sent_to_a_worker_whose_packets_were_taken_at_its_end(ends):
    ends.give(1)
    executors_end = ends.tasks.dup()
    taken = ends.worker.take_back(ended=True)
    assert [packet.task_id for packet in taken] == [1]
    with pytest.raises(BrokenPipeError):
        executors_end.send(b"too late")
    executors_end.close()


def test_the_process_of_a_worker_sees_the_end_although_the_executor_has_its_socket(ends):
    executors_end, process_end = ends.tasks.dup(), ends.queue.dup()
    process_end.settimeout(10)
    ends.worker.hang_up()
    assert process_end.recv(100) == b""
    executors_end.close()
    process_end.close()
