"""Trace files: what is written is read, also after a crash and while the file grows."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import helpers
import pytest

from parsl_flux_bulk import trace
from parsl_flux_bulk.errors import TraceError
from parsl_flux_bulk.trace.format import FAILED, HEAD, NO_TIMES, TASK, TIMES
from parsl_flux_bulk.trace.reader import Trace, find
from parsl_flux_bulk.trace.writer import Writer, request


def record(task_id: int, app: int = 1, worker: int = 1, job: int = 0, outcome: int = 0) -> bytes:
    return HEAD.pack(task_id, app, worker, job, outcome, 1.0, 2.0, 5.0) + TIMES.pack(3.0, 4.0)


def write_some(writer: Writer) -> None:
    writer.event("run", {"label": "a", "kind": "executor"})
    writer.event("app", {"index": 1, "name": "f"})
    writer.event("worker", {"index": 1, "name": "h-7/0", "host": "h", "cores": 2, "gpus": 1, "job": 3})
    writer.event("job", {"job": 3, "id": "ƒ9", "state": "submitted", "submitted": 0.5})
    writer.event("job", {"job": 3, "id": "ƒ9", "state": "ended", "ended": 9.0})
    writer.tasks([record(1), record(2, worker=0, job=3, outcome=FAILED)])


def test_a_record_has_64_bytes() -> None:
    assert TASK.size == HEAD.size + len(NO_TIMES) == 64


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.trace"
    path.parent.mkdir()
    writer = Writer(str(path))
    write_some(writer)
    writer.event("end", {})
    writer.close()
    writer.close()
    read = trace.read(tmp_path)
    assert read.finished and read.run["label"] == "a"
    assert read.jobs[3]["submitted"] == 0.5 and read.jobs[3]["ended"] == 9.0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert trace.tasks(path) == {
        "executor": ["a", "a"],
        "task": [1, 2],
        "app": ["f", "f"],
        "submitted": [1.0, 1.0],
        "assigned": [2.0, 2.0],
        "started": [3.0, 3.0],
        "ended": [4.0, 4.0],
        "resolved": [5.0, 5.0],
        "outcome": ["completed", "failed"],
        "worker": ["h-7/0", ""],
        "host": ["h", ""],
        "cores": [2, 0],
        "gpus": [1, 0],
        "job": ["ƒ9", "ƒ9"],
    }


@pytest.mark.parametrize("length", [3, 8, 11, 60, -1, -40])
def test_a_file_is_read_as_it_grows(tmp_path: Path, length: int) -> None:
    writer = Writer(str(tmp_path / "whole.trace"))
    write_some(writer)
    writer.close()
    content = (tmp_path / "whole.trace").read_bytes()
    growing = tmp_path / "growing.trace"
    growing.write_bytes(content[:length])
    read = Trace(str(growing))
    assert read.update()
    assert len(read.columns) < 2
    growing.write_bytes(content)
    assert read.update() and not read.update()
    assert list(read.columns.id) == [1, 2] and not read.finished


def test_a_kill_loses_no_more_than_the_last_second(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from parsl_flux_bulk.trace.writer import Writer\n"
        "writer = Writer(sys.argv[1])\n"
        "writer.event('run', {'label': 'a'})\n"
        "writer.event('app', {'index': 1, 'name': 'f'})\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "a.trace"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    try:
        helpers.wait_until(lambda: path.exists() and path.stat().st_size > 100, bound=60)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert trace.read(path).apps == {1: "f"}


def test_a_request_of_another_process_reaches_the_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "a.trace")
    words: list[str] = []
    arrived = threading.Event()

    def take(request: list[str]) -> None:
        if request == ["bad"]:
            raise ValueError("bad")
        words.extend(request)
        arrived.set()

    writer = Writer(path, take)
    request(path, "bad")  # is logged, and the next one arrives
    request(path, "cancel 12")
    helpers.wait_event(arrived)
    writer.close()
    assert words == ["cancel", "12"]
    with pytest.raises(OSError):
        request(path, "cancel 13")
    assert os.listdir(tmp_path) == ["a.trace"]


def test_without_requests_there_is_no_fifo(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path / "a.trace"))
    assert os.listdir(tmp_path) == ["a.trace"]
    writer.close()


def test_a_full_disk_ends_the_trace_and_nothing_else() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    writer = Writer("/dev/full")
    write_some(writer)
    writer.close()
    writer.event("late", {})


def test_what_is_not_a_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.trace").write_text("nothing of the kind")
    with pytest.raises(TraceError, match="does not begin with FBTRACE1"):
        trace.read(tmp_path)
    with pytest.raises(TraceError, match=r"does not exist.*runinfo/000"):
        find(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match="has no trace"):
        find(tmp_path / "empty")
