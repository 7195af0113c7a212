"""Jobspec files as work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parsl_flux_bulk.cli.bulksubmit.arguments import parse
from parsl_flux_bulk.cli.bulksubmit.work import Work
from parsl_flux_bulk.errors import JobspecError

JOBSPEC = {
    "version": 1,
    "resources": [
        {"type": "slot", "count": 1, "label": "task", "with": [{"type": "core", "count": 1}]},
    ],
    "tasks": [{"command": ["true"], "slot": "task", "count": {"per_slot": 1}}],
    "attributes": {"system": {"duration": 0}},
}


def write(path: Path, command: str) -> None:
    tasks = [{**JOBSPEC["tasks"][0], "command": [command]}]
    path.write_text(json.dumps({**JOBSPEC, "tasks": tasks}))


def test_files_that_were_read_ahead_are_not_read_again(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for number, path in enumerate(files):
        write(path, f"command-{number}")
    work = Work(parse([str(tmp_path)]))
    work.read_ahead()
    for path in files:
        path.unlink()
    requests = [item.request() for item in work.items(lambda descriptor: None)]

    assert [request.jobspec.data["tasks"][0]["command"] for request in requests] == [
        ["command-0"], ["command-1"], ["command-2"],
    ]  # fmt: skip


def test_what_cannot_be_read_ahead_is_reported_with_its_job(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "true")
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").symlink_to("gone.json")
    work = Work(parse([str(tmp_path)]))
    work.read_ahead()
    good, garbage, missing = work.items(lambda descriptor: None)

    assert good.request().jobspec.data["tasks"][0]["command"] == ["true"]
    with pytest.raises(JobspecError, match="not JSON"):
        garbage.request()
    with pytest.raises(FileNotFoundError):
        missing.request()


def test_a_retried_job_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "true")
    work = Work(parse([str(tmp_path)]))
    work.read_ahead()
    (item,) = work.items(lambda descriptor: None)

    assert item.request().jobspec == item.request().jobspec
