"""How jobs end: exit status, signals, cancel, time-out, failed starts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from seam import Seam, files, jobspec, shell

from parsl_flux_bulk.instances.base import JobRequest, JobResult, JobStatus


def test_success(seam: Seam) -> None:
    _, result = seam.run_one(jobspec(["true"]))
    assert result == JobResult(JobStatus.COMPLETED, exit_code=0)


def test_exit_status(seam: Seam) -> None:
    _, result = seam.run_one(shell("exit 3"))
    assert (result.status, result.exit_code, result.signal) == (JobStatus.FAILED, 3, None)
    assert result.started
    assert not result.exception


def test_signal(seam: Seam) -> None:
    _, result = seam.run_one(shell("kill -9 $$"))
    assert (result.status, result.exit_code, result.signal) == (JobStatus.FAILED, None, signal.SIGKILL)
    assert result.started


def test_the_largest_exit_status_of_several_tasks_counts(seam: Seam) -> None:
    # Two tasks a core, so that one core is enough for this test.
    text = shell("exit $((FLUX_TASK_RANK * 5))", per_resource={"type": "core", "count": 2})
    _, result = seam.run_one(text)
    assert result.exit_code == 5


def test_command_not_found(seam: Seam) -> None:
    _, result = seam.run_one(jobspec(["no-such-program-anywhere"]))
    assert (result.status, result.exit_code) == (JobStatus.FAILED, 127)
    assert "no-such-program-anywhere" in result.note
    assert "No such file" in result.note


def test_command_not_executable(seam: Seam, tmp_path: Path) -> None:
    program = tmp_path / "data"
    program.write_text("x")
    program.chmod(0o644)
    _, result = seam.run_one(jobspec([str(program)]))
    assert (result.status, result.exit_code) == (JobStatus.FAILED, 126)
    assert "Permission denied" in result.note


def test_stderr_of_a_failed_job_comes_along(seam: Seam) -> None:
    _, result = seam.run_one(shell("for i in $(seq 100); do echo line $i >&2; done; exit 1"))
    lines = result.stderr.splitlines()
    assert lines[-1] == "line 100"
    assert 1 < len(lines) <= 50


def test_stderr_of_a_successful_job_does_not(seam: Seam) -> None:
    _, result = seam.run_one(shell("echo something >&2"))
    assert result.stderr == ""


def test_an_unusable_output_file_fails_the_job(seam: Seam) -> None:
    _, result = seam.run_one(jobspec(["true"], **files("/dev/null/directory/file")))
    assert result.status is JobStatus.FAILED
    assert result.exception == "exec"
    assert "/dev/null/directory" in result.note
    assert "Not a directory" in result.note


def test_a_rank_that_exit_timeout_kills_is_no_success(seam: Seam) -> None:
    per_core = {"type": "core", "count": 2}
    text = shell("sleep $((FLUX_TASK_RANK * 20))", per_resource=per_core, exit_timeout="1s")
    _, result = seam.run_one(text)
    assert result.status is JobStatus.FAILED
    assert result.exit_code != 0
    assert "exit-timeout" in result.note


def test_duration(seam: Seam) -> None:
    # So long that Flux has started the job by then, which `started` is about.
    _, result = seam.run_one(jobspec(["sleep", "60"], duration=2))
    assert result.status is JobStatus.TIMEOUT
    assert result.exception == "timeout"
    assert "expired" in result.note
    assert result.started


def test_a_duration_that_is_not_reached(seam: Seam) -> None:
    _, result = seam.run_one(jobspec(["true"], duration=60))
    assert result.ok


def test_cancel_running(seam: Seam, tmp_path: Path) -> None:
    (job_id,) = seam.submit(shell("echo yes > started; exec sleep 60", cwd=tmp_path))
    seam.wait_file(tmp_path / "started")
    seam.connection.cancel([job_id], "changed our mind")
    (result,) = seam.wait([job_id])
    assert result.status is JobStatus.CANCELED
    assert result.exception == "cancel"
    assert "changed our mind" in result.note
    assert result.started


def test_cancel_queued(seam: Seam, tmp_path: Path) -> None:
    cores = seam.connection.capacity().cores
    blocker, queued = seam.submit(
        shell("echo yes > started; exec sleep 60", cwd=tmp_path, cores=cores),
        shell("echo yes > ran", cwd=tmp_path),
    )
    seam.wait_file(tmp_path / "started")
    seam.connection.cancel([queued], "")
    (result,) = seam.wait([queued])
    assert result.status is JobStatus.CANCELED
    assert not result.started
    assert blocker not in seam.results
    seam.connection.cancel([blocker], "")
    seam.wait([blocker])
    assert not (tmp_path / "ran").exists()


def test_cancel_of_ended_and_unknown_jobs_is_passed_over(seam: Seam) -> None:
    job_id, result = seam.run_one(jobspec(["true"]))
    assert result.ok
    seam.connection.cancel([job_id, 12345], "too late")
    assert seam.run_one(jobspec(["true"]))[1].ok


def test_a_job_that_ignores_sigterm_is_killed(seam: Seam, tmp_path: Path) -> None:
    (job_id,) = seam.submit(
        shell("trap '' TERM; echo yes > started; while :; do sleep 0.2; done", cwd=tmp_path)
    )
    seam.wait_file(tmp_path / "started")
    seam.connection.cancel([job_id], "")
    (result,) = seam.wait([job_id])
    assert result.status is JobStatus.CANCELED
    assert result.signal == signal.SIGKILL


def test_watch_after_the_end(seam: Seam) -> None:
    (job_id,) = seam.connection.submit([JobRequest(shell("exit 4"))])
    assert isinstance(job_id, int)
    # Ends of later jobs of the only core there may be: the first one has ended by then.
    seam.run(jobspec(["true"], tasks=seam.connection.capacity().cores))
    seam.completion.watch(job_id)
    assert seam.wait([job_id])[0].exit_code == 4


def test_standard_error_into_what_cannot_be_read_back(seam: Seam, tmp_path: Path) -> None:
    """Reading the last lines back from a FIFO would wait for ever; from /dev/full, it gives zeros."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for path in (str(fifo), "/dev/full"):
        _, result = seam.run_one(shell("echo no >&2; exit 3", **files("/dev/null", path)))
        assert (result.status, result.stderr) == (JobStatus.FAILED, "")
    os.close(reader)
