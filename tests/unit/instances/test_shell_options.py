"""What is completed in a jobspec before Flux gets it, and what is read from Flux's records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parsl_flux_bulk.errors import OutputUnavailable
from parsl_flux_bulk.instances.base import JobResult, JobStatus
from parsl_flux_bulk.instances.flux.results import read_end, read_output, read_result, with_log
from parsl_flux_bulk.instances.flux.shell_options import OutputFiles, complete, explain, spool_paths
from parsl_flux_bulk.instances.full_disk import cut_off
from parsl_flux_bulk.jobspec import Jobspec
from parsl_flux_bulk.pipeline.exit_status_to_error import describe


def completed(cwd: str, spool: str = "", **options: object) -> tuple[dict, OutputFiles]:
    system = {"cwd": cwd, "shell": {"options": options}}
    given = Jobspec({"attributes": {"system": system}})
    before = json.dumps(given.data)
    jobspec, files = complete(given, spool)
    assert json.dumps(given.data) == before, "jobs share parts of a jobspec"
    return jobspec.system["shell"]["options"], files


def test_input_is_empty_and_leads_through_the_working_directory(tmp_path: Path) -> None:
    path = completed(str(tmp_path))[0]["input"]["stdin"]["path"]
    with open(path) as stdin:
        assert stdin.read() == ""
    missing = completed(str(tmp_path / "absent"))[0]["input"]["stdin"]["path"]
    with pytest.raises(FileNotFoundError):
        Path(missing).read_text()


def test_the_shell_does_not_wait_before_it_writes_down_the_input() -> None:
    assert completed("/tmp")[0]["input"]["batch-timeout"] <= 0.01


def test_a_named_input_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("x")
    for path in (str(tmp_path / "in"), "in"):
        options, _ = completed(str(tmp_path), input={"stdin": {"type": "file", "path": path}})
        assert Path(options["input"]["stdin"]["path"]).read_text() == "x"
    options, _ = completed(str(tmp_path), input={"stdin": {"type": "service"}})
    assert options["input"]["stdin"] == {"type": "service"}


def test_a_failed_check_names_the_directory() -> None:
    path = completed("/absent")[0]["input"]["stdin"]["path"]
    said = explain(f"error opening input file '{path}': No such file or directory")
    assert said == "cannot enter the working directory '/absent': No such file or directory"


def test_output_files(tmp_path: Path) -> None:
    options, files = completed(str(tmp_path), output={"stdout": {"type": "file", "path": "a/{{id}}.txt"}})
    assert options["output"]["stdout"]["path"] == f"{tmp_path}/a/{{{{id}}}}.txt"
    assert (tmp_path / "a").is_dir()
    assert files.rendered(7, "f7") == OutputFiles(f"{tmp_path}/a/f7.txt", f"{tmp_path}/a/f7.txt")
    options, files = completed("/absent/x", output={"stdout": {"type": "file", "path": "a/b"}})
    assert files.stdout == "/absent/x/a/b"
    assert not Path("/absent").exists()


def test_output_without_a_file_is_bounded_or_spooled(tmp_path: Path) -> None:
    options, files = completed("/tmp")
    assert options["output"] == {"limit": "10M"}
    assert files == OutputFiles()
    _, files = completed("/tmp", spool=str(tmp_path))
    assert files.rendered(7, "f7") == OutputFiles(f"{tmp_path}/7.out", f"{tmp_path}/7.err")
    _, files = completed("/tmp", spool=str(tmp_path), output={"stderr": {"type": "file", "path": "e"}})
    assert files.rendered(7, "f7") == OutputFiles(f"{tmp_path}/7.out", "/tmp/e")
    assert list(spool_paths(str(tmp_path), 7)) == [f"{tmp_path}/7.out", f"{tmp_path}/7.err"]


def _ended(status: int, *exceptions: tuple[str, str, int]) -> list[dict[str, object]]:
    """The eventlog of a job that ran; an exception is a type, a note and a severity."""
    return [
        {"name": "submit", "context": {}},
        {"name": "alloc"},
        *(
            {"name": "exception", "context": {"type": type_, "note": note, "severity": severity}}
            for type_, note, severity in exceptions
        ),
        {"name": "finish", "context": {"status": status}},
    ]


def test_a_fatal_exception_is_no_success() -> None:
    result = read_result(_ended(0, ("exec", "exit-timeout=2s has expired", 0)), "")
    assert (result.status, result.exit_code, result.exception) == (JobStatus.FAILED, None, "exec")
    result = read_result(_ended(0, ("cancel", "", 0)), "")
    assert (result.status, result.exit_code, result.exception) == (JobStatus.CANCELED, None, "cancel")


def test_the_first_fatal_exception_says_how_a_job_ended() -> None:
    result = read_result(_ended(9 << 8, ("x", "warning", 3), ("timeout", "over", 0), ("exec", "late", 0)), "")
    assert (result.status, result.exit_code, result.note) == (JobStatus.TIMEOUT, 9, "over")
    result = read_result(_ended(0, ("x", "warning", 3)), "")
    assert result.ok and result.started


def test_without_an_eventlog_the_message_is_all_there_is() -> None:
    result = read_result([], "task(s) exited with exit code 3")
    assert (result.status, result.exit_code, result.started) == (JobStatus.FAILED, None, True)
    assert result.note == "task(s) exited with exit code 3"
    result = read_result([{"name": "submit"}, {"name": "clean"}], "")
    assert (result.status, result.started) == (JobStatus.FAILED, False)


def test_a_killed_shell_is_told_from_a_task_that_a_signal_killed() -> None:
    task, shell = (read_result(_ended(status), "task(s) Killed") for status in (137 << 8, 9))
    assert (task.signal, task.exception) == (9, "")
    assert (shell.signal, shell.exception) == (9, "exec")
    assert "flux-shell was killed" in shell.note


def _event(name: str, **context: object) -> str:
    return json.dumps({"timestamp": 1.0, "name": name, "context": context}) + "\n"


def test_the_end_of_the_output_has_the_reason() -> None:
    log = _event("data", stream="stderr", rank="0", data="line\n")
    log += _event("log", level=3, message="open: /no/o.txt: No such file or directory")
    log += _event("log", level=3, message="plugin 'output': shell.init failed")
    _, reasons, fatal = read_end(log.encode()[9:] + b'{"half')
    assert not fatal
    assert "open: /no/o.txt" in reasons
    result = JobResult(JobStatus.FAILED, exception="exec", note="shell_init: No such file or directory")
    assert with_log(result, reasons).note == f"{result.note} (open: /no/o.txt: No such file or directory)"
    assert read_end(log.encode())[0] == "line"


def test_the_log_of_a_shell_that_ended_without_an_exception_is_the_reason() -> None:
    log = _event("log", level=3, message="taskmap: failed to process rank=0: Invalid argument")
    task_failed = JobResult(JobStatus.FAILED, exit_code=1, note="task(s) exited with exit code 1")
    _, reasons, fatal = read_end(log.encode())
    assert with_log(task_failed, reasons, fatal) is task_failed
    log += _event("log", level=2, message="failed to initialize shell info")
    _, reasons, fatal = read_end(log.encode())
    assert describe(with_log(task_failed, reasons, fatal)) == (
        "exit status 1: exec: taskmap: failed to process rank=0: Invalid argument; "
        "failed to initialize shell info"
    )


def test_truncated_output_is_an_error() -> None:
    log = _event("data", stream="stdout", rank="0", data="line\n")
    log += _event("log", level=4, message="stdout: 587871 of 588895 bytes truncated")
    with pytest.raises(OutputUnavailable, match="name a file"):
        read_output(log)


def test_a_full_disk_is_noticed(tmp_path: Path) -> None:
    good = tmp_path / "file"
    good.write_text("")
    assert cut_off([str(good), str(tmp_path / "absent"), "/dev/null"]) == ""
    assert "'/dev/full'" in cut_off([str(good), "/dev/full"])
