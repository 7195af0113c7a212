"""Managers: worker processes that die, and who is blamed."""

from __future__ import annotations

import operator
import os
import random
import signal
import sys
import time

import calls
import helpers
import pytest
from manager_process import FUNCTION, SECOND_FUNCTION, ManagerProcess

from parsl_flux_bulk.protocol import frames, serialize


def test_exit_is_blamed_on_the_task_that_called_it(end):
    manager = ManagerProcess(end)
    manager.add_function(os._exit)
    manager.add_function(operator.neg, SECOND_FUNCTION)
    manager.peer.send(
        frames.encode_task(0, 1, SECOND_FUNCTION, serialize.dumps(((1,), {}))),
        frames.encode_task(0, 2, FUNCTION, serialize.dumps(((3,), {}))),
        frames.encode_task(0, 3, SECOND_FUNCTION, serialize.dumps(((3,), {}))),
        frames.encode_task(0, 4, SECOND_FUNCTION, serialize.dumps(((4,), {}))),
    )
    manager.peer.get(frames.RETURNED, 2)

    assert [(f.kind, f.id) for f in manager.peer.frames[1:]] == [
        (frames.OUTCOME, 1),
        (frames.DIED, 2),
        (frames.RETURNED, 3),
        (frames.RETURNED, 4),
    ]
    assert manager.died().json == {"exit_code": 3, "signal": None, "stderr": ""}


def test_a_segmentation_fault_says_where(end):
    manager = ManagerProcess(end)
    manager.add_function(calls.crash)
    manager.give((1,))
    died = manager.died()

    assert (died.id, died.json["exit_code"], died.json["signal"]) == (1, None, signal.SIGSEGV)
    assert "Segmentation fault" in died.json["stderr"]
    assert "in crash" in died.json["stderr"]


def test_an_idle_worker_that_dies_had_run_nothing(end):
    manager = ManagerProcess(end)
    manager.add_function(os.getpid)
    manager.give((1,))
    manager.peer.get(frames.OUTCOME)
    os.kill(manager.value(1), signal.SIGKILL)

    assert manager.died().id == 0
    assert manager.died().json["signal"] == signal.SIGKILL
    manager.give((2,))
    manager.peer.get(frames.OUTCOME, 2)
    assert not manager.peer.of(frames.RETURNED)


def test_forgetting_starts_no_worker(end):
    manager = ManagerProcess(end)
    manager.add_function(os.getpid)
    manager.add_function(operator.neg, SECOND_FUNCTION)
    manager.give((1,))
    manager.peer.get(frames.OUTCOME)
    os.kill(manager.value(1), signal.SIGSTOP)
    manager.send(frames.FORGET, id=FUNCTION)
    manager.send(frames.KILL)
    manager.died()
    assert not helpers.descendants(manager.process.pid)

    manager.give((2, 2), function_id=SECOND_FUNCTION)
    manager.peer.get(frames.OUTCOME, 2)


def test_a_task_of_an_unknown_function_ends_the_manager(end):
    manager = ManagerProcess(end)
    manager.give((1, 1))

    assert b"names a function that was never sent" in manager.process.communicate(timeout=60)[1]
    assert manager.process.returncode == 1


def test_the_next_task_finds_a_successor(end):
    manager = ManagerProcess(end)
    manager.add_function(os._exit)
    manager.give((1, 1))
    manager.died()

    assert manager.run(operator.neg, 2, task_id=2) == -2


def test_the_last_lines_of_stderr(end):
    manager = ManagerProcess(end)
    manager.add_function(calls.talk_and_die)
    manager.give((1, 1000))
    tail = manager.died().json["stderr"].splitlines()

    assert tail == [f"line {line}" for line in range(980, 1000)]
    assert manager.retire()[1].splitlines() == [f"line {line}".encode() for line in range(1000)]


def test_a_manager_whose_stderr_nobody_reads_goes_on(end):
    manager = ManagerProcess(end, slots=2)
    manager.add_function(calls.write_stderr)
    manager.give((1, 3_000_000))
    manager.give((2, 0), slot=1)
    manager.peer.until(lambda: 2 in manager.outcome_ids())
    assert 1 not in manager.outcome_ids()

    passed_on = 0
    while passed_on < 3_000_000:
        passed_on += len(os.read(manager.process.stderr.fileno(), 1 << 20))
    manager.peer.get(frames.OUTCOME, 2)


def test_a_worker_that_closes_what_is_not_its_own(end):
    manager = ManagerProcess(end)
    manager.add_function(os.closerange)
    manager.give((1, 2, 5000))

    assert manager.died().id == 1
    assert manager.run(operator.neg, 2, task_id=2) == -2


def test_a_task_whose_files_replace_all_descriptors_runs_once(end, tmp_path):
    """As in a daemon: everything is closed, and files of the task get the numbers."""
    manager = ManagerProcess(end)
    manager.add_function(calls.replace_descriptors)
    for task_id in (1, 2):
        manager.give((task_id, str(tmp_path / f"file{task_id}"), 3, 64))

    manager.peer.get(frames.OUTCOME, 2)
    assert manager.outcome_ids() == [1, 2]
    for task_id in (1, 2):
        assert (tmp_path / f"file{task_id}").read_bytes() == b"started\n"


def test_workers_that_cannot_begin_end_the_manager(end, tmp_path):
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import os, sys\nfrom parsl_flux_bulk.worker import main as worker\n"
        "def fail(pid, cpus): raise OSError('no such core')\n"
        "os.sched_setaffinity = fail\n"
        "sys.path.insert(0, '')\nsys.exit(worker.main())\n"
    )
    manager = ManagerProcess.from_command(end, sys.executable, starter)
    manager.add_function(operator.neg)
    for count in (1, 2):
        manager.give((count, 1))
        manager.peer.get(frames.RETURNED, count)
    manager.give((3, 1))
    _, said = manager.process.communicate(timeout=60)

    assert manager.process.returncode == 1
    assert b"3 consecutive workers" in said
    assert b"no such core" in said
    assert not manager.outcome_ids()


@pytest.mark.parametrize("with_lanes", [False, True])
def test_every_task_has_one_end_while_workers_are_killed(end, tmp_path, with_lanes):
    """2,000 tasks over 2 workers, one of which is killed every 50 ms. The last task only ends by that.

    Each kill lets 150 more tasks begin. With lanes, one of the workers gets a task at a time, by its lane if
    it has used that.
    """
    count, chance = 2000, random.Random(with_lanes)

    def seconds(id):
        return 3600 if id == count else chance.choice([0, 0.002])

    end.with_lanes = with_lanes
    marks = tmp_path / "marks"
    marks.mkdir()
    manager = ManagerProcess(end, slots=2)
    manager.add_function(calls.mark)
    todo, ends = list(range(1, count + 1)), {}
    if with_lanes:
        manager.open_lane(count + 1, os.devnull, slot=1)
    queued, by_lane = {0: 0, 1: 0}, 0
    seen, next_kill, kills, ended_before = len(manager.peer.frames), time.monotonic() + 0.05, 0, 0
    deadline = time.monotonic() + 60
    while len(ends) < count:
        assert time.monotonic() < deadline, f"{len(ends)} of {count} ended"
        for slot in (0, 1):
            most = 1 + (slot == 0 or not with_lanes) * 19
            if todo and queued[slot] < most and count - len(todo) < 150 * (kills + 1):
                batch = [todo.pop() for _ in range(min(most, len(todo)))]
                queued[slot] += len(batch)
                calls_of = [(id, f"{marks}/{id}", seconds(id)) for id in batch]
                if most == 1 and manager.give_by_lane(*calls_of[0], slot=slot):
                    by_lane += 1
                else:
                    manager.give(*calls_of, slot=slot)
        manager.peer.read()
        for frame in manager.peer.frames[seen:]:
            if frame.kind == frames.RETURNED:
                todo.append(frame.id)
            if with_lanes and {frame.kind, ends.get(frame.id)} == {frames.OUTCOME, frames.DIED}:
                continue  # the worker was killed after it had sent the outcome, before it could note that
            if frame.kind in (frames.OUTCOME, frames.DIED) and frame.id:
                assert frame.id not in ends, f"task {frame.id} ended twice"
                ends[frame.id] = frame.kind
            if frame.kind in (frames.OUTCOME, frames.RETURNED) or frame.id:
                queued[frame.slot] -= 1
        seen = len(manager.peer.frames)
        # On a machine so busy that nothing came back since the last kill, let them come to something.
        came_back = len(ends) > ended_before or len(ends) == count - 1
        if time.monotonic() > next_kill and came_back:
            next_kill = time.monotonic() + 0.05
            children = [pid for pid in helpers.descendants(manager.process.pid) if helpers.is_running(pid)]
            if children and killed(chance.choice(children)):
                kills, ended_before = kills + 1, len(ends)
        time.sleep(0.0005)
    manager.retire()

    started = {int(file.name): file.read_text().count("started") for file in marks.iterdir()}
    blamed = {id for id, kind in ends.items() if kind == frames.DIED}
    assert kills > 10
    assert (by_lane > 0) == with_lanes
    assert count in blamed
    assert {id for id, times in started.items() if times > 1} == set()
    # A task that was blamed was running; in the moments before and after its mark, without one.
    assert set(ends) - set(started) <= blamed
    assert len(blamed) <= kills


def killed(pid):
    """Kill a process; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
