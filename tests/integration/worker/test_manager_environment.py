"""Managers: what user code finds in a worker process."""

from __future__ import annotations

import operator
import os
import sys

import calls
import helpers
import pytest
from executor_end import WORKER
from manager_process import FUNCTION, SECOND_FUNCTION, ManagerProcess

from parsl_flux_bulk.protocol import frames, serialize


def test_no_module_of_the_package_shadows_the_users(end, tmp_path):
    (tmp_path / "channel.py").write_text("def whose(): return 'mine'\n")
    (tmp_path / "slot.py").write_text("")

    whose, in_main, ours, first = ManagerProcess(end, sys_path=[str(tmp_path), *sys.path]).run(
        calls.traces_of_the_package
    )

    assert whose == "mine"
    assert not set(in_main) & {"main", "os", "sys", "import_own_package"}
    assert not ours
    assert first != str(WORKER.parent)


def test_standard_input_is_at_its_end(end):
    assert ManagerProcess(end).run(calls.read_stdin) == ""


def test_what_a_task_prints_is_there_with_its_outcome(end):
    manager = ManagerProcess(end)
    manager.run(print, "printed")

    assert os.read(manager.process.stdout.fileno(), 100) == b"printed\n"


def test_what_a_task_writes_to_stderr_is_passed_on(end):
    manager = ManagerProcess(end)
    manager.run(calls.write_stderr, 3, b"unbuffered\n")

    assert manager.retire() == (b"", b"unbuffered\n" * 3)


def test_cloudpickle_is_imported_once_for_all(end):
    manager = ManagerProcess(end)
    manager.peer.send(frames.encode(frames.FUNCTION, 0, SECOND_FUNCTION, serialize.CLOUDPICKLE + b"whatever"))

    assert manager.run(calls.imported, "cloudpickle")


def test_many_workers_where_few_files_may_be_open(end):
    command = f"ulimit -Sn 256 && exec {sys.executable} {WORKER}"
    manager = ManagerProcess.from_command(end, "sh", "-c", command, slots=100)
    manager.add_function(operator.neg)
    for slot in range(100):
        manager.give((slot + 1, slot), slot=slot)
    manager.peer.get(frames.OUTCOME, 100)

    assert len(helpers.descendants(manager.process.pid)) == 100


def test_each_worker_is_pinned_to_its_own_cores(end):
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    process = end.start("manager")
    peer = end.accept()
    slots = peer.frames[0].slot
    peer.send(frames.encode_json(frames.SETUP, 0, 0, {}))
    peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, serialize.dumps(os.sched_getaffinity)))
    peer.send(*(frames.encode_task(s, s + 1, FUNCTION, serialize.dumps(((0,), {}))) for s in range(slots)))
    masks = [
        serialize.read_outcome(frame.payload[frames.TIMES_SIZE :])[0]
        for frame in peer.get(frames.OUTCOME, slots)
    ]

    assert sorted(cpu for mask in masks for cpu in mask) == cpus
    assert os.sched_getaffinity(process.pid) == set(cpus)


def test_the_number_of_the_worker_and_its_gpus(end):
    environment = {"PARSL_FLUX_BULK_GPUS": "1", "CUDA_VISIBLE_DEVICES": "3,7"}
    manager = ManagerProcess(end, slots=2, environment=environment)
    manager.add_function(os.getenv)
    manager.give((1, "CUDA_VISIBLE_DEVICES"), (2, "PARSL_WORKER_RANK"), slot=1)
    manager.peer.get(frames.OUTCOME, 2)

    assert (manager.value(1), manager.value(2)) == ("7", "1")


def test_tasks_see_nothing_of_the_launcher_of_their_worker(end):
    launcher = {"PMI_FD": "18", "PMI_RANK": "0", "PMI_SIZE": "1", "FLUX_KVS_NAMESPACE": "job-1"}
    launcher["FLUX_PMI_LIBRARY_PATH"] = "/lib/libpmi.so"
    manager = ManagerProcess(end, environment={**launcher, "PMI_MINE": "kept"})
    manager.add_function(os.getenv)
    manager.give(*((number, name) for number, name in enumerate([*launcher, "PMI_MINE"], 1)))
    manager.peer.get(frames.OUTCOME, 6)

    assert [manager.value(number) for number in range(1, 7)] == [None] * 5 + ["kept"]


def test_user_code_may_use_processes_and_threads(end):
    assert ManagerProcess(end).run(calls.parallel) == ([-1, -2, -3], [-1, -2, -3], b"hi\n")


def test_a_call_that_comes_back_twice_counts_once(end):
    manager = ManagerProcess(end)
    assert manager.run(calls.fork) is True
    manager.add_function(operator.neg, SECOND_FUNCTION)
    manager.give((2, 1), function_id=SECOND_FUNCTION)
    manager.peer.get(frames.OUTCOME, 2)
    assert manager.outcome_ids() == [1, 2]
