"""`bulksubmit --trace`: each job has its times and its outcome, and another program may cancel it."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import helpers
import pytest
from test_bulksubmit import BOUND, Where, bulksubmit, in_tmp_path, where

from parsl_flux_bulk import trace
from parsl_flux_bulk.cli.flux_bulk import main
from parsl_flux_bulk.trace.writer import request as send

__all__ = ["in_tmp_path", "where"]


def test_every_job_is_a_task_of_the_trace(where: Where) -> None:
    began = time.time()
    run = bulksubmit(
        *where, "--trace", "run.trace", "sh", "-c", "echo why >&2; exit {}", ":::", "0", "0", "3"
    )
    assert run.returncode == 1, run.stderr
    table = trace.tasks("run.trace")
    assert sorted(table["outcome"]) == ["completed", "completed", "failed"]
    assert set(table["app"]) == {"sh"} and set(table["cores"]) == {1} and all(table["job"])
    for number in range(3):
        times = [table[name][number] for name in ("submitted", "assigned", "resolved")]
        assert began - 1 < times[0] <= times[2] < time.time() + 1
    read = trace.read("run.trace")
    assert read.finished and read.run["kind"] == "bulksubmit" and read.run["total"] == 3
    (failure,) = read.failures
    assert "exit status 3" in failure["error"]
    assert (read.statuses[-1]["done"], read.statuses[-1]["failed"]) == (2, 1)


def check_times(began: float, jobs: int, seconds: float) -> None:
    """Check that the jobs, each of so many seconds, have times that can be true."""
    table = trace.tasks("run.trace")
    assert len(table["task"]) == jobs
    rows = zip(*(table[name] for name in ("submitted", "started", "ended", "resolved")), strict=True)
    for submitted, started, ended, resolved in rows:
        assert began <= submitted <= started <= ended <= resolved <= time.time()
        assert seconds - 0.01 <= ended - started


def test_the_times_of_a_job_are_those_of_its_processes(where: Where) -> None:
    began = time.time()
    run = bulksubmit(*where, "--trace", "run.trace", "sh", "-c", "sleep 0.2; exit {}", ":::", "0", "0", "3")
    assert run.returncode == 1, run.stderr
    check_times(began, jobs=3, seconds=0.2)
    read = trace.read("run.trace")
    assert sorted(job["started"] for job in read.jobs.values()) == sorted(read.columns.started)


@pytest.mark.flux
def test_packed_jobs_have_times(flux_uri: str) -> None:
    began = time.time()
    run = bulksubmit(
        "--uri", flux_uri, "--packed", "--trace", "run.trace", "--copies", "4", "--", "sleep", "0.1"
    )
    assert run.returncode == 0, run.stderr
    check_times(began, jobs=4, seconds=0.1)


def test_a_job_that_never_started_has_no_start(where: Where) -> None:
    run = bulksubmit(*where, "--trace", "run.trace", "--cores", "1000000", "--", "true")
    assert run.returncode == 1, run.stderr
    table = trace.tasks("run.trace")
    assert math.isnan(table["started"][0]) and math.isnan(table["ended"][0])


def test_a_report_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bokeh")
    run = bulksubmit(
        "--local", "--max-active", "1", "--report", "run.html", "sh", "-c", "exit {}", ":::", "0", "3"
    )
    assert (run.returncode, run.stdout.splitlines()[-1]) == (1, "bulksubmit: Report: run.html")
    text = Path("run.html").read_text()
    assert "exit status 3" in text and len(trace.tasks("run.trace")["task"]) == 2
    sections = re.findall("<h2>(.*?)</h2>", text)
    assert [sections[0], *sections[2:]] == [
        "Jobs that ended per second",
        "Timeline of up to 1 job at once",
        "Where time went: a job&#x27;s seconds in each phase",
        "Commands",
        "Failures",
        "Configuration",
    ]
    configuration = text[text.index("<h2>Configuration</h2>") :]
    assert "--report run.html sh -c &#x27;exit {}&#x27; ::: 0 3</td>" in configuration
    assert f"<td>{os.getcwd()}</td>" in configuration


@pytest.mark.parametrize(
    "packed", [False, pytest.param(True, marks=pytest.mark.flux)], ids=["local", "packed"]
)
def test_another_program_sees_where_each_job_is_and_cancels_it(
    packed: bool, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--uri", request.getfixturevalue("flux_uri"), "--packed"] if packed else ["--local"]
    command = [sys.executable, "-m", "parsl_flux_bulk", *options, "--trace", "run.trace"]
    process = subprocess.Popen([*command, "--copies", "2", "--", "sleep", "100"], stdout=subprocess.PIPE)

    def both() -> list[tuple[str, ...]] | None:
        assert main(["top", "--once", "run.trace"]) == 0
        # task, app, where, state
        jobs = re.findall(r"^(\d+) +(sleep 100 #\d) +(\d+ on \S+) +(\w+)", capsys.readouterr().out, re.M)
        return sorted(jobs) if len(jobs) == 2 else None

    try:
        helpers.wait_until(Path("run.trace.control").exists, BOUND)
        first, second = helpers.wait_until(both, BOUND)
        assert (first[:2], second[:2]) == (("1", "sleep 100 #1"), ("2", "sleep 100 #2"))
        assert first[3] == second[3] == "submitted"
        places = {tuple(job[2].split(" on ")) for job in (first, second)}
        assert {node for _, node in places} == {socket.gethostname()}
        for number in (1, 2):
            send("run.trace", f"cancel {number}")
        assert process.wait(BOUND) == 1
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert trace.tasks("run.trace")["outcome"] == ["canceled", "canceled"]
    assert {(job["id"], job["node"]) for job in trace.read("run.trace").jobs.values()} == places


def test_a_trace_that_cannot_be_written_is_refused(where: Where) -> None:
    run = bulksubmit(*where, "--trace", "none/run.trace", "--", "true")
    assert run.returncode == 2 and "cannot write 'none/run.trace' (--trace)" in run.stderr
