"""Workers: nothing of a task reaches the next one."""

from __future__ import annotations

import operator
import os

import calls
import pytest
from manager_process import SECOND_FUNCTION, ManagerProcess

from parsl_flux_bulk.protocol import frames


def test_everything_is_put_back(end, tmp_path):
    manager = ManagerProcess(end)
    for function_id, function in enumerate((calls.environment_of_process, calls.disturb, os.getpid), 1):
        manager.add_function(function, function_id)
    manager.give((1,), function_id=3)
    manager.give((2,), function_id=1)
    manager.give((3, str(tmp_path)), function_id=2)
    manager.give((4,), function_id=1)
    manager.give((5,), function_id=3)
    manager.peer.get(frames.OUTCOME, 5)
    before, _, after = (manager.value(number) for number in (2, 3, 4))

    assert {name: value for name, value in after.items() if value != before[name]} == {}
    assert manager.value(1) == manager.value(5)


@pytest.mark.parametrize(
    "function",
    [
        calls.leave_thread,
        calls.lower_priority,
        calls.clear_modules,
        calls.change_group,
    ],
)
def test_a_worker_that_cannot_be_put_back_is_replaced(end, function):
    manager = ManagerProcess(end)
    manager.add_function(function)
    manager.add_function(os.getpid, SECOND_FUNCTION)
    manager.give((1,))
    manager.give(*((number,) for number in range(2, 100)), function_id=SECOND_FUNCTION)
    manager.peer.get(frames.OUTCOME, 99)
    others = {manager.value(number) for number in range(2, 100)}

    assert len(others) == 1
    assert manager.value(1) not in others
    assert manager.outcome_ids() == list(range(1, 100))
    assert not manager.peer.of(frames.DIED, frames.RETURNED)


def test_a_handler_that_raises_after_the_call_harms_nothing(end):
    manager = ManagerProcess(end)
    manager.add_function(calls.alarm_at_return)
    manager.add_function(operator.neg, SECOND_FUNCTION)
    for number in range(1, 101, 2):
        manager.give((number,))
        manager.give((number + 1, number), function_id=SECOND_FUNCTION)
    manager.peer.get(frames.OUTCOME, 100)

    assert not manager.peer.of(frames.DIED)
    assert [manager.value(number + 1) for number in range(1, 101, 2)] == [-n for n in range(1, 101, 2)]
