"""Managers: tasks recalled, workers killed on purpose or replaced after their limit."""

from __future__ import annotations

import operator
import os
import random
import re
import signal
import sys
import time

import apps
import calls
import helpers
from manager_process import SECOND_FUNCTION, ManagerProcess

from parsl_flux_bulk.protocol import frames


def test_recall_of_everything_not_started(end):
    manager = ManagerProcess(end)
    manager.add_function(calls.sleep_and_return)
    manager.give((1, 0.0))
    manager.peer.get(frames.OUTCOME)
    manager.give(*((id, 0.3) for id in range(2, 2000)), then=frames.encode(frames.RECALL, 0, 0))
    manager.peer.get(frames.RETURNED, 1996)
    manager.peer.until(lambda: len(manager.outcome_ids()) + len(manager.peer.of(frames.RETURNED)) == 1999)

    assert len(manager.outcome_ids()) <= 3
    assert sorted(manager.outcome_ids() + [f.id for f in manager.peer.of(frames.RETURNED)]) == list(
        range(1, 2000)
    )
    assert manager.run(calls.sleep_and_return, 0.0, "still here", task_id=3000) == "still here"


def test_recall_of_one_leaves_the_others_in_order(end, tmp_path):
    manager = ManagerProcess(end)
    manager.add_function(apps.wait_for_file)
    manager.give((1, str(tmp_path / "go")), *((id, "/") for id in range(2, 100)))
    manager.send(frames.RECALL, id=50)
    manager.peer.get(frames.RETURNED)
    (tmp_path / "go").touch()
    manager.peer.get(frames.OUTCOME, 98)

    assert [f.id for f in manager.peer.of(frames.RETURNED)] == [50]
    assert manager.outcome_ids() == [id for id in range(1, 100) if id != 50]


def test_recall_takes_a_function_and_long_calls_along(end, tmp_path):
    manager = ManagerProcess(end)
    manager.add_function(apps.wait_for_file)
    manager.add_function(operator.itemgetter(0), SECOND_FUNCTION)
    manager.give((1, str(tmp_path / "go")))
    long = {id: bytes([id]) * 100_000 for id in range(2, 8)}
    manager.give(*((id, text) for id, text in long.items()), function_id=SECOND_FUNCTION)
    manager.send(frames.RECALL, id=3)
    manager.peer.get(frames.RETURNED)
    (tmp_path / "go").touch()
    manager.peer.get(frames.OUTCOME, 6)

    assert [f.id for f in manager.peer.of(frames.RETURNED)] == [3]
    assert [manager.value(id) for id in (2, 4, 5, 6, 7)] == [2, 4, 5, 6, 7]


def test_a_call_that_exceeds_its_walltime_fails_alone(end):
    manager = ManagerProcess(end)
    manager.add_function(calls.sleep_and_return)
    manager.give((1, 0.0))
    manager.give_limited(2, 0.5, 60)
    manager.give((3, 0.0, "waited"))
    manager.give_limited(4, 20, 0.0, "in time")
    manager.give_limited(5, 0.5, 60)
    manager.peer.get(frames.OUTCOME, 5)

    assert not manager.peer.of(frames.DIED) and not manager.peer.of(frames.RETURNED)
    assert manager.outcome_ids() == [1, 2, 3, 4, 5]
    assert (manager.value(3), manager.value(4)) == ("waited", "in time")


def test_what_has_started_or_ended_cannot_be_recalled(end, tmp_path):
    manager = ManagerProcess(end)
    manager.add_function(calls.mark)
    manager.give((1, str(tmp_path / "first")))
    manager.peer.get(frames.OUTCOME)
    manager.give((2, str(tmp_path / "second"), 0.3))
    helpers.wait_until((tmp_path / "second").exists)
    manager.send(frames.RECALL, id=1)
    manager.send(frames.RECALL, id=2)
    manager.peer.get(frames.OUTCOME, 2)

    assert not manager.peer.of(frames.RETURNED)


def test_recall_races_with_starting(end):
    manager = ManagerProcess(end, slots=2)
    manager.add_function(operator.neg)
    ids = range(1, 4001)
    for first in range(1, 4001, 40):
        for slot in (0, 1):
            manager.give(*((id, 1) for id in range(first + 20 * slot, first + 20 * slot + 20)), slot=slot)
        manager.send(frames.RECALL, slot=0)
        manager.send(frames.RECALL, slot=1, id=first + 30)
    manager.peer.until(lambda: len(manager.peer.of(frames.OUTCOME, frames.RETURNED)) >= 4000)

    assert sorted(f.id for f in manager.peer.of(frames.OUTCOME, frames.RETURNED)) == list(ids)


def test_kill_ends_the_task_and_what_it_started(end, tmp_path):
    note = tmp_path / "pid"
    manager = ManagerProcess(end)
    manager.add_function(calls.start_another)
    manager.give((1, str(note)), (2, str(note)))
    helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    manager.send(frames.KILL, id=1)
    manager.peer.get(frames.RETURNED)

    assert [(f.kind, f.id) for f in manager.peer.frames[1:]] == [(frames.DIED, 1), (frames.RETURNED, 2)]
    assert manager.died().json["signal"] == signal.SIGKILL
    helpers.wait_gone([int(note.read_text())])


def test_kill_of_a_task_that_has_ended_harms_no_other(end):
    manager = ManagerProcess(end)
    manager.add_function(calls.sleep_and_return)
    manager.give((1, 0.0), (2, 0.2), (3, 0.0))
    manager.peer.get(frames.OUTCOME)
    manager.send(frames.KILL, id=1)
    manager.peer.get(frames.OUTCOME, 3)

    assert manager.outcome_ids() == [1, 2, 3]
    assert not manager.peer.of(frames.DIED)


def test_kill_of_a_task_that_has_not_started_gives_it_back(end, tmp_path):
    manager = ManagerProcess(end)
    manager.add_function(apps.wait_for_file)
    manager.give((1, str(tmp_path / "go")), (2, "/"), (3, "/"))
    manager.send(frames.KILL, id=2)
    manager.peer.get(frames.RETURNED)
    (tmp_path / "go").touch()
    manager.peer.get(frames.OUTCOME, 2)

    assert manager.outcome_ids() == [1, 3]
    assert [f.id for f in manager.peer.of(frames.RETURNED)] == [2]


def test_kill_races_with_ending(end):
    """Whatever is killed was the one that was meant."""
    manager = ManagerProcess(end)
    manager.add_function(operator.neg)
    chance = random.Random(1)
    for id in range(1, 601, 3):
        manager.give((id, 1), (id + 1, 1), (id + 2, 1))
        time.sleep(chance.random() * 0.0003)
        manager.send(frames.KILL, id=id + 1)
        manager.peer.until(lambda count=id + 2: len(ends_of(manager)) == count)

    assert sorted(frame.id for frame in ends_of(manager)) == list(range(1, 601))
    assert all(frame.id % 3 == 2 for frame in ends_of(manager) if frame.kind == frames.DIED)


def ends_of(manager):
    """The frames that say how a task ended."""
    return [f for f in manager.peer.of(frames.OUTCOME, frames.RETURNED, frames.DIED) if f.id]


def test_workers_are_replaced_after_their_number_of_tasks(end):
    manager = ManagerProcess(end, tasks_per_worker=3)
    manager.add_function(os.getpid)
    manager.give(*((id,) for id in range(1, 11)))
    manager.peer.get(frames.OUTCOME, 10)
    pids = [manager.value(id) for id in range(1, 11)]

    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3, 1]
    assert not manager.peer.of(frames.RETURNED, frames.DIED)


def test_a_worker_that_does_not_end_after_its_last_task_is_ended(end, tmp_path):
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from parsl_flux_bulk.worker import manager\nmanager.LIMIT_TIMEOUT = 0.2\nmanager.main()\n"
    )
    manager = ManagerProcess.from_command(end, sys.executable, starter, tasks_per_worker=1)
    manager.add_function(calls.sleep_at_exit)
    manager.give((1,), (2,))
    manager.peer.get(frames.OUTCOME, 2)

    assert manager.value(1) != manager.value(2)
    helpers.wait_until(lambda: not helpers.descendants(manager.process.pid))
    assert not manager.peer.of(frames.RETURNED, frames.DIED)


def test_a_worker_cleans_up_after_itself(end, tmp_path):
    manager = ManagerProcess(end)
    manager.run(calls.touch_at_exit, str(tmp_path / "cleaned"))
    manager.retire()

    assert (tmp_path / "cleaned").exists()


def test_a_manager_logs_its_decisions_if_asked_to(end, tmp_path):
    manager = ManagerProcess(end, debug=True)
    manager.add_function(calls.mark)
    manager.give((1, str(tmp_path / "first")))
    manager.peer.get(frames.OUTCOME)
    manager.give((2, str(tmp_path / "second"), 60.0), (3, str(tmp_path / "third")))
    helpers.wait_until((tmp_path / "second").exists)
    manager.send(frames.RECALL, id=3)
    manager.peer.get(frames.RETURNED)
    manager.send(frames.KILL, id=2)
    manager.died()
    lines = [line.partition(": ")[2] for line in manager.retire()[1].decode().splitlines()]

    assert [re.sub(r"pid=\d+", "pid=N", line) for line in lines] == [
        "worker forked slot=0 pid=N waiting=1",
        "tasks recalled slot=0 task=3 returned=1",
        "worker killed slot=0 pid=N: KILL task=2",
        f"worker ended slot=0 pid=N exit_code={-signal.SIGKILL} running=2 done=1: was KILLED",
    ]
