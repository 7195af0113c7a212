"""Managers: how they exit, and what they leave."""

from __future__ import annotations

import operator
import os
import signal
import sys
import time
from pathlib import Path

import calls
import helpers
import pytest
from executor_end import WORKER
from manager_process import ManagerProcess

from parsl_flux_bulk.protocol import frames


def test_retire_waits_for_no_timeout_but_that_of_idle_workers_and_leaves_nothing(end, tmp_path):
    """Retire a manager with three idle workers and a busy one."""
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from parsl_flux_bulk.worker import manager\n"
        "manager.KILL_TIMEOUT = manager.LIMIT_TIMEOUT = 3600.0\nmanager.main()\n"
    )
    manager = ManagerProcess.from_command(end, sys.executable, starter, slots=4)
    manager.add_function(calls.sleep_and_return)
    for slot in range(3):
        manager.give((slot + 1, 0.0), slot=slot)
    manager.peer.get(frames.OUTCOME, 3)
    manager.give((4, 3600.0), slot=3)
    children = helpers.wait_until(lambda: len(c := helpers.descendants(manager.process.pid)) == 4 and c)
    manager.retire()

    assert manager.process.returncode == 0
    helpers.wait_gone(children)


def busy_with_grandchild(end, tmp_path):
    note = tmp_path / "pid"
    manager = ManagerProcess(end)
    manager.add_function(calls.start_another)
    manager.give((1, str(note)))
    helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    return manager, [*helpers.descendants(manager.process.pid), int(note.read_text())]


def test_nothing_is_left_when_the_executor_goes(end, tmp_path):
    manager, processes = busy_with_grandchild(end, tmp_path)
    manager.peer.connection.close()

    assert b"executor" in manager.process.communicate(timeout=60)[1]
    assert manager.process.returncode == 1
    helpers.wait_gone(processes)


def test_nothing_is_left_when_the_manager_is_told_to_end(end, tmp_path):
    manager, processes = busy_with_grandchild(end, tmp_path)
    manager.process.terminate()
    manager.process.communicate(timeout=60)

    assert manager.process.returncode == -signal.SIGTERM
    helpers.wait_gone(processes)


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_daemons_of_tasks_end_with_the_manager(end, tmp_path, number):
    manager = ManagerProcess(end, slots=2)
    manager.add_function(calls.start_daemon)
    for slot in (0, 1):
        manager.give((slot + 1, str(tmp_path / f"pid{slot}")), slot=slot)
    manager.peer.get(frames.OUTCOME, 2)
    daemons = [int((tmp_path / f"pid{slot}").read_text()) for slot in (0, 1)]
    assert all(
        helpers.is_running(pid) and os.getsid(pid) != os.getsid(manager.process.pid) for pid in daemons
    )
    if number is None:
        manager.retire()
    else:
        manager.process.send_signal(number)
        manager.process.communicate(timeout=60)

    # Without a wait for them: they have been killed, and may take a moment to be gone.
    helpers.wait_gone(daemons)


def test_workers_end_with_a_manager_that_is_killed(end):
    manager = ManagerProcess(end, slots=2)
    manager.add_function(calls.sleep_and_return)
    manager.give((1, 60.0))
    manager.give((2, 0.0), slot=1)
    manager.peer.get(frames.OUTCOME)
    children = helpers.descendants(manager.process.pid)
    assert len(children) == 2
    manager.process.kill()

    helpers.wait_gone(children)


def test_what_tasks_have_started_ends_with_a_manager_that_is_killed(end, tmp_path):
    manager, processes = busy_with_grandchild(end, tmp_path)
    manager.process.kill()

    helpers.wait_gone(processes)


def test_everything_ends_with_the_parent_of_a_manager(end, tmp_path):
    # As flux-shell, whose tasks go on without it if it is killed.
    note = tmp_path / "pid"
    shell = f"{sys.executable} {WORKER}; exit $?"
    manager = ManagerProcess.from_command(end, "sh", "-c", shell)
    manager.add_function(calls.start_another)
    manager.give((1, str(note)))
    helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    processes = [*helpers.descendants(manager.process.pid), int(note.read_text())]
    assert len(set(processes)) == 3
    manager.process.kill()

    helpers.wait_gone(processes)


def test_an_idle_pool_does_nothing(end):
    manager = ManagerProcess(end, slots=2)
    manager.add_function(operator.neg)
    manager.give((1, 1))
    manager.give((2, 1), slot=1)
    manager.peer.get(frames.OUTCOME, 2)
    processes = [manager.process.pid, *helpers.descendants(manager.process.pid)]

    def switches():
        status = [Path(f"/proc/{pid}/status").read_text() for pid in processes]
        return [text.partition("\nvoluntary_ctxt_switches:")[2].split()[0] for text in status]

    for pid in processes:
        helpers.wait_until(lambda p=pid: Path(f"/proc/{p}/stat").read_text().split()[2] == "S")

    def quiet():
        before = switches()
        time.sleep(1.0)
        return switches() == before

    # On a busy machine, the processes may not have come to rest when the first second begins.
    assert any(quiet() for _ in range(3))


def test_a_mode_that_there_is_not(end):
    process = end.start("neither")

    assert b"expected 'manager' or 'task'" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def test_no_executor_at_the_address(end):
    end.listener.close()
    process = end.start("manager")

    assert b"cannot connect to the executor's socket" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
