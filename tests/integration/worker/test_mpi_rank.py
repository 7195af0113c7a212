"""A rank of a task job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import apps
import calls
import helpers
import pytest
from executor_end import WORKER
from service_process import Service

from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.worker import lifeline


def task(function, *arguments, walltime=None, **setup):
    call = serialize.dumps((arguments, {}))
    if walltime is not None:
        call = serialize.with_walltime(walltime, call)
    return b"".join(
        (
            frames.encode_json(frames.SETUP, 0, 0, {"sys_path": sys.path, **setup}),
            frames.encode(frames.FUNCTION, 0, 1, serialize.dumps(function)),
            frames.encode_task(0, 7, 1, call),
        )
    )


def test_a_rank_makes_one_call(end, tmp_path):
    process = end.start("task", FLUX_TASK_RANK="1", FLUX_JOB_SIZE="2")
    peer = end.accept()
    peer.send(task(calls.print_rank, "rank"))
    (outcome,) = peer.get(frames.OUTCOME)
    peer.until_closed()

    assert peer.frames[0].slot == 0
    assert peer.frames[0].json["rank"] == 1
    assert (outcome.id, serialize.read_outcome(outcome.payload[frames.TIMES_SIZE :])) == (7, ("1", None))
    assert process.communicate(timeout=60) == (b"rank 1\n", b"")
    assert process.returncode == 0


def test_the_copy_of_a_call_that_forks_has_no_outcome(end):
    process = end.start("task")
    peer = end.accept()
    peer.send(task(calls.fork_and_wait))
    peer.until_closed()

    (outcome,) = peer.of(frames.OUTCOME)
    assert serialize.read_outcome(outcome.payload[frames.TIMES_SIZE :]) == (0, None)
    assert process.wait(60) == 0


def test_a_rank_stuck_in_c_is_ended_by_its_watchdog(end):
    process = end.start("task")
    peer = end.accept()
    peer.send(task(apps.hold, "gil", 60, walltime=0.3))
    peer.until_closed()

    assert process.wait(60) == -lifeline.WALLTIME_SIGNAL
    assert not peer.of(frames.OUTCOME)


def test_a_rank_that_ends_in_time_leaves_no_watchdog(end):
    process = end.start("task")
    peer = end.accept()
    peer.send(task(apps.hold, "sleep", 0.1, walltime=30))
    (outcome,) = peer.get(frames.OUTCOME)
    peer.until_closed()

    assert serialize.read_outcome(outcome.payload[frames.TIMES_SIZE :]) == ("sleep", None)
    assert process.wait(60) == 0


def test_a_rank_that_exits_has_no_outcome(end, tmp_path):
    process = end.start("task")
    peer = end.accept()
    peer.send(task(os._exit, 3))
    peer.until_closed()

    assert process.wait(60) == 3
    assert not peer.of(frames.OUTCOME)


def test_a_rank_whose_executor_dies_ends_with_what_it_started(end, tmp_path):
    process = end.start("task", PARSL_FLUX_BULK_PING="0.2")
    peer = end.accept()
    note = tmp_path / "pid"
    peer.send(task(calls.start_another, str(note)))
    helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    # By then it watches: that is a second connection.
    peer.connection.close()
    watching, _ = end.listener.accept()
    end.listener.close()
    watching.close()

    assert b"ending, since the executor" in process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGKILL
    helpers.wait_gone([int(note.read_text())])


def test_a_rank_and_what_it_started_end_with_its_parent(end, tmp_path):
    # As flux-shell, which makes a rank the leader of a process group; ranks go on without it.
    process = subprocess.Popen(
        ["bash", "-c", f"set -m; {sys.executable} {WORKER} & wait"],
        env={**end.environment, "PYTHONPATH": str(helpers.PROJECT), "PARSL_FLUX_BULK_MODE": "task"},
    )
    end.processes.append(process)
    peer = end.accept()
    note = tmp_path / "pid"
    peer.send(task(calls.start_another, str(note)))
    helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    processes = [*helpers.descendants(process.pid), int(note.read_text())]
    process.kill()

    helpers.wait_gone(processes)


@pytest.mark.flux
def test_a_rank_under_flux_loses_no_long_outcome_at_its_end(flux_uri, tmp_path, monkeypatch):
    service = Service(flux_uri, tmp_path, task(bytes, 50_000_000))
    environment = {**service.environment, "PARSL_FLUX_BULK_MODE": "task", "PARSL_FLUX_BULK_TOKEN": "1"}
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    subprocess.run(
        ["flux", "run", "-N1", *variables, sys.executable, str(WORKER)],
        env={**os.environ, "FLUX_URI": flux_uri},
        check=True,
        timeout=60,
    )
    ((kind, _, id, payload),) = frames.decode(service.last.read_bytes())
    service.kill()

    assert (kind, id) == (frames.OUTCOME, 7)
    assert serialize.read_outcome(bytes(payload[frames.TIMES_SIZE :])) == (bytes(50_000_000), None)
