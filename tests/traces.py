"""Make trace files of runs that never were, as large as wanted."""

from __future__ import annotations

import random
from pathlib import Path

from parsl_flux_bulk.trace.format import FAILED, HEAD, NO_TIMES, TIMES
from parsl_flux_bulk.trace.writer import Writer

BEGIN = 1_790_000_000.0


def write_trace(path: Path, tasks: int, workers: int = 8, task_jobs: int = 0, failed: int = 3) -> Path:
    """Write the trace of a run: workers that run one task after another, then task jobs.

    Every task of a worker takes 0.5 to 1.5 s, and there is a pause of 0.1 s between two.
    """
    chance = random.Random(1)
    writer = Writer(str(path))
    cores = workers
    about = {
        "kind": "executor",
        "label": "synthetic",
        "instance": "none",
        "config": {"instance": "'<none>'", "python": "None"},
    }
    about |= {"command": "campaign.py", "directory": "/home", "python": "3.11.7"}
    writer.event("run", about, BEGIN)
    writer.event("capacity", {"nodes": 1, "cores": cores, "gpus": 0}, BEGIN)
    for index, name in enumerate(("simulate", "train <b>", "select"), 1):
        writer.event("app", {"index": index, "name": name}, BEGIN)
    writer.event("block", {"block": "0", "state": "joined", "joined": BEGIN, "cores": cores}, BEGIN)
    job = {"job": 1, "id": "ƒ1", "kind": "workers", "slots": workers, "cores": cores, "gpus": 0}
    writer.event("job", {**job, "submitted": BEGIN, "started": BEGIN + 1, "state": "started"}, BEGIN)
    for index in range(1, workers + 1):
        host = f"node{(index - 1) // 4}"
        about = {"index": index, "name": f"{host}-7/{index}", "host": host, "cores": 1, "gpus": 0, "job": 1}
        writer.event("worker", about, BEGIN)
    free = [BEGIN + 1.0] * workers
    records = []
    for task_id in range(1, tasks + 1):
        worker = min(range(workers), key=free.__getitem__) if workers <= 64 else task_id % workers
        started = free[worker] + 0.1
        ended = free[worker] = started + chance.uniform(0.5, 1.5)
        bad = task_id <= failed
        outcome = FAILED if bad else 0
        times = BEGIN, started - 0.05, ended + 0.001
        app = 1 + task_id % 3
        records.append(HEAD.pack(task_id, app, worker + 1, 0, outcome, *times) + TIMES.pack(started, ended))
        if bad:
            error = {"type": "ValueError", "error": f"bad <value> {task_id % 2}", "notes": ["a note"]}
            place = {"stderr": "line 1\nline <2>", "host": "node0", "job": 1}
            writer.event("failure", {"task": task_id, "app": "simulate", **error, **place}, ended)
    for number in range(task_jobs):
        task_id = tasks + 1 + number
        began = BEGIN + 2.0 * number
        about = {
            "job": 2 + number,
            "id": f"ƒ{2 + number}",
            "kind": "task",
            "cores": 2,
            "gpus": 0,
            "task": task_id,
        }
        writer.event("job", {**about, "submitted": began, "ended": began + 5}, began)
        records.append(HEAD.pack(task_id, 1, 0, 2 + number, 0, BEGIN, began, began + 5.0) + NO_TIMES)
    for first in range(0, len(records), 100):
        writer.tasks(records[first : first + 100])
    writer.event("end", {}, max(free))
    writer.close()
    return path
