"""Managers: calls and functions in, outcomes out."""

from __future__ import annotations

import operator
import os
import pickle
import platform
import random
import sys

import apps
import psutil
import pytest
from manager_process import FUNCTION, ManagerProcess

from parsl_flux_bulk.protocol import frames, serialize


def test_it_introduces_itself(end):
    process = end.start("manager", PARSL_FLUX_BULK_SLOTS="3", FLUX_TASK_RANK="2", FLUX_JOB_SIZE="4")
    (hello,) = end.accept().frames

    assert (hello.slot, hello.id) == (3, 4711)
    assert hello.json == {
        "rank": 2,
        "size": 4,
        "host": os.uname().nodename,
        "pid": process.pid,
        "node": os.environ.get("FLUX_URI"),
        "python": platform.python_version(),
        "block": os.environ.get("PARSL_WORKER_BLOCK_ID", ""),
        "cpus": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
    }


def test_it_has_a_slot_for_every_core_that_it_may_use(end):
    process = end.start("manager")
    (hello,) = end.accept().frames

    assert 1 <= hello.slot <= len(os.sched_getaffinity(process.pid))


def test_a_call_and_its_result(end):
    assert ManagerProcess(end).run(operator.mul, 6, 7) == 42


def test_an_exception_is_an_outcome(end):
    with pytest.raises(ZeroDivisionError):
        ManagerProcess(end).run(operator.truediv, 1, 0)


def test_a_function_that_cannot_be_read_is_an_outcome(end):
    manager = ManagerProcess(end)
    manager.peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, b"Pgarbage"))
    manager.give((1,))
    manager.peer.get(frames.OUTCOME)

    with pytest.raises(Exception, match="function cannot be deserialized"):
        manager.value(1)


def manager_with_lanes(end, tmp_path, lone_after):
    """A manager whose workers take a task for the only one after so many seconds."""
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from parsl_flux_bulk.worker import manager, task_loop\n"
        f"task_loop.LONE_AFTER = {lone_after}\nmanager.main()\n"
    )
    end.with_lanes = True
    return ManagerProcess.from_command(end, sys.executable, starter)


def by_lane(manager):
    """The number of outcomes that came by lanes."""
    return sum(lane.messages for lane in manager.peer.lanes)


def test_a_lone_outcome_goes_by_the_lane(end):
    end.with_lanes = True
    manager = ManagerProcess(end)
    manager.add_function(operator.neg)
    manager.open_lane(1, 1)
    before = by_lane(manager)
    for number in range(3, 103):
        manager.give_alone(number, number)
        manager.peer.get(frames.OUTCOME, number)

    assert by_lane(manager) - before == 100


def test_an_outcome_goes_by_the_manager_while_another_task_waits(end, tmp_path):
    manager = manager_with_lanes(end, tmp_path, -3600.0)
    manager.add_function(apps.wait_for_file)
    manager.open_lane(1, "/")
    before = by_lane(manager)
    manager.give((3, str(tmp_path / "go")), *((id, "/") for id in range(4, 105)))
    manager.send(frames.RECALL, id=104)
    manager.peer.get(frames.RETURNED)  # all others wait in the worker's queue
    (tmp_path / "go").touch()
    manager.peer.get(frames.OUTCOME, 103)

    assert by_lane(manager) - before <= 1, "the last may be alone"


def test_the_outcome_of_a_task_right_after_another_goes_by_the_manager(end, tmp_path):
    manager = manager_with_lanes(end, tmp_path, 3600.0)
    manager.add_function(operator.neg)
    for number in range(1, 11):
        manager.give((number, number))
        manager.peer.get(frames.OUTCOME, number)

    assert by_lane(manager) <= 1, "the first follows no other"


def test_many_tasks_keep_their_order(end):
    manager = ManagerProcess(end)
    manager.add_function(operator.neg)
    manager.give(*((id, id) for id in range(1, 2001)))
    manager.peer.get(frames.OUTCOME, 2000)

    assert manager.outcome_ids() == list(range(1, 2001))
    assert manager.value(1234) == -1234


def test_a_function_is_sent_once_and_forgotten_when_told(end, tmp_path):
    class Loads:
        """Leaves a trace wherever it is deserialized."""

        def __init__(self, path):
            self.path = path

        def __reduce__(self):
            return (eval, (f"(open({self.path!r}, 'a').write('loaded '), __import__('operator').neg)[1]",))

    trace = tmp_path / "trace"
    manager = ManagerProcess(end)
    payload = serialize.PICKLE + pickle.dumps(Loads(str(trace)))
    manager.peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, payload))
    manager.give((1, 1), (2, 2), (3, 3))
    manager.peer.get(frames.OUTCOME, 3)
    assert trace.read_text() == "loaded "

    manager.send(frames.FORGET, id=FUNCTION)
    manager.peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, serialize.dumps(operator.pos)))
    manager.give((4, 4))
    manager.peer.get(frames.OUTCOME, 4)
    assert manager.value(3) == -3
    assert manager.value(4) == 4


@pytest.mark.parametrize("size", [60_000, 65_505, 65_507, 70_000, 5_000_000])
def test_long_calls_and_results(end, size):
    text = random.Random(size).randbytes(size)

    assert ManagerProcess(end).run(operator.add, text, b"!") == text + b"!"


def test_many_long_calls_at_once(end):
    manager = ManagerProcess(end, slots=2)
    manager.add_function(operator.itemgetter(slice(0, 8)))
    texts = {id: random.Random(id).randbytes(1_000_000) for id in range(1, 41)}
    manager.give(*((id, texts[id]) for id in range(1, 21)))
    manager.give(*((id, texts[id]) for id in range(21, 41)), slot=1)
    manager.peer.get(frames.OUTCOME, 40)

    assert {id: manager.value(id) for id in texts} == {id: text[:8] for id, text in texts.items()}


def test_a_result_of_50_mb(end):
    assert ManagerProcess(end).run(operator.mul, b"x", 50_000_000) == b"x" * 50_000_000


def test_a_result_too_long_to_travel_fails_alone(end, tmp_path):
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from parsl_flux_bulk.protocol import frames\nfrom parsl_flux_bulk.worker import manager\n"
        "frames.MAX_PAYLOAD = 1000\nmanager.main()\n"
    )
    manager = ManagerProcess.from_command(end, sys.executable, starter)
    manager.add_function(operator.mul)
    manager.give((1, b"x", 2000), (2, b"x", 20))
    manager.peer.get(frames.OUTCOME, 2)

    with pytest.raises(OverflowError, match="a result of"):
        manager.value(1)
    assert manager.value(2) == b"x" * 20
