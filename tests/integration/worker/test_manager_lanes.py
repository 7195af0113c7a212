"""Managers: tasks that the executor sends to a worker itself, by its lane."""

from __future__ import annotations

import operator
import os
import signal

import apps
import calls
import pytest
from manager_process import SECOND_FUNCTION, ManagerProcess

from parsl_flux_bulk.protocol import frames

THIRD_FUNCTION = 99


@pytest.fixture
def manager(end):
    """A manager whose worker has its lane open, and has run a task of the function `operator.neg`."""
    end.with_lanes = True
    manager = ManagerProcess(end)
    manager.add_function(operator.neg)
    manager.add_function(apps.tell_and_wait, SECOND_FUNCTION)
    manager.open_lane(1, 1)
    return manager


def told(path):
    """The pid in a file; 0 if there is none yet."""
    return int(path.read_text() or 0) if path.exists() else 0


def test_a_task_and_its_outcome_pass_by_the_manager(manager):
    messages = manager.peer.messages
    for task_id in range(1001, 1011):
        assert manager.give_by_lane(task_id, task_id)
        assert manager.wait_for(task_id) == -task_id
    assert manager.peer.messages == messages, "the manager said nothing"
    manager.give((2000, 1))
    assert manager.wait_for(2000) == -1, "of the manager"


def test_a_crash_is_blamed_on_the_task_that_came_by_the_lane(manager):
    manager.add_function(os._exit, THIRD_FUNCTION)
    manager.give((500, "not a number"), function_id=THIRD_FUNCTION)  # an error; the function is known then
    with pytest.raises(TypeError):
        manager.wait_for(500)
    assert manager.give_by_lane(501, 3, function_id=THIRD_FUNCTION)
    assert manager.died().id == 501
    assert manager.died().json["exit_code"] == 3

    manager.open_lane(600, 1)  # of the next worker
    assert manager.give_by_lane(800, 1)
    assert manager.wait_for(800) == -1


def test_a_task_that_waits_in_the_lane_is_returned_when_its_worker_dies(manager, tmp_path):
    manager.give((500, str(tmp_path / "told"), str(tmp_path / "never")), function_id=SECOND_FUNCTION)
    manager.peer.until(lambda: told(tmp_path / "told"), what="the first task runs")
    assert manager.give_by_lane(501, 1)
    os.kill(told(tmp_path / "told"), signal.SIGKILL)
    manager.peer.get(frames.RETURNED)
    assert manager.died().id == 500
    assert [frame.id for frame in manager.peer.of(frames.RETURNED)] == [501]


def test_a_task_that_waits_in_the_lane_can_be_recalled(manager, tmp_path):
    manager.give((500, str(tmp_path / "told"), str(tmp_path / "gate")), function_id=SECOND_FUNCTION)
    manager.peer.until(lambda: told(tmp_path / "told"), what="the first task runs")
    assert manager.give_by_lane(501, 1) and manager.give_by_lane(502, 2)
    manager.send(frames.RECALL, id=501)
    manager.peer.get(frames.RETURNED)
    (tmp_path / "gate").touch()
    assert manager.wait_for(502) == -2
    assert [frame.id for frame in manager.peer.of(frames.RETURNED)] == [501]
    assert 501 not in manager.outcome_ids()


def test_a_task_that_came_by_the_lane_can_be_killed_and_one_that_has_ended_is_not(manager, tmp_path):
    use_second_function(manager, tmp_path)
    manager.give_by_lane(501, str(tmp_path / "told"), str(tmp_path / "never"), function_id=SECOND_FUNCTION)
    manager.peer.until(lambda: told(tmp_path / "told"), what="it runs")
    manager.send(frames.KILL, id=400)  # which has ended
    manager.send(frames.KILL, id=501)
    assert manager.died().id == 501
    assert len(manager.peer.of(frames.DIED)) == 1


def use_second_function(manager, tmp_path):
    manager.give((400, str(tmp_path / "first"), str(tmp_path)), function_id=SECOND_FUNCTION)
    manager.wait_for(400)


def test_a_task_of_a_function_that_the_worker_does_not_have_is_returned(manager):
    assert manager.give_by_lane(501, "told", "gate", function_id=SECOND_FUNCTION)
    assert [frame.id for frame in manager.peer.get(frames.RETURNED)] == [501]


def test_what_waits_in_the_lane_of_a_worker_that_leaves_is_run_by_the_next(manager, tmp_path):
    manager.add_function(calls.leave_thread_after, THIRD_FUNCTION)
    manager.give((500, str(tmp_path / "gate")), function_id=THIRD_FUNCTION)
    assert manager.give_by_lane(501, 1)
    (tmp_path / "gate").touch()
    assert manager.wait_for(501) == -1
