"""The library: jobs in, futures out, on every instance."""

from __future__ import annotations

import concurrent.futures
import gc
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest

from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture
from parsl_flux_bulk.errors import (
    ExecutorClosed,
    InstanceUnavailable,
    JobCanceled,
    JobFailed,
    JobRefused,
    JobspecError,
    JobTimeout,
)
from parsl_flux_bulk.instances.base import JobStatus
from parsl_flux_bulk.jobspec import build
from parsl_flux_bulk.jobspec.resources import Resources

BOUND = 60.0


@pytest.fixture(params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def instance(request: pytest.FixtureRequest) -> str:
    return request.param if request.param == "local" else request.getfixturevalue("flux_uri")


@pytest.fixture
def bulk(instance: str) -> Iterator[BulkSubmitter]:
    with BulkSubmitter(instance) as submitter:
        yield submitter


def jobspec(*command: str) -> str:
    return build(Resources(), command, environment=os.environ, cwd=os.getcwd()).text


def test_a_jobspec_is_text_an_object_or_a_file(bulk: BulkSubmitter, tmp_path: Path) -> None:
    text = jobspec("echo", "hello")
    file = tmp_path / "job.json"
    file.write_text(text)
    futures = [bulk.submit(text), bulk.submit(json.loads(text)), bulk.submit(file)]
    for future in futures:
        assert future.result(BOUND).ok
        assert future.stdout() == "hello\n"
        assert future.stderr() == ""
    assert futures[2].label == str(file)
    assert len({future.job_id for future in futures}) == 3


def test_a_future_knows_its_job(bulk: BulkSubmitter) -> None:
    future = bulk.submit_command(["sh", "-c", "echo $FLUX_JOB_ID"], label="mine")
    result = future.result(BOUND)
    assert future.stdout().strip() == future.job_name
    assert future.label == "mine"
    assert future.job_result is result
    assert future.t_submit is not None and future.t_end is not None
    assert future.t_submit <= future.t_end
    assert repr(future) == f"<JobFuture {future.job_name} 'mine' completed>"


def test_a_command_starts_where_we_are_with_what_we_have(
    bulk: BulkSubmitter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OURS", "ours")
    ours = bulk.submit_command(["sh", "-c", "echo $PWD $OURS"])
    theirs = bulk.submit_command(["sh", "-c", "echo $PWD $OURS"], cwd="/", environment={"OURS": "changed"})
    ours.result(BOUND)
    theirs.result(BOUND)
    assert ours.stdout().split() == [str(tmp_path), "ours"]
    assert theirs.stdout().split() == ["/", "changed"]


def test_resources_are_those_of_the_specification(bulk: BulkSubmitter) -> None:
    future = bulk.submit_command(["sh", "-c", "echo $FLUX_TASK_RANK of $FLUX_JOB_SIZE"], num_tasks=2)
    future.result(BOUND)
    assert sorted(future.stdout().splitlines()) == ["0 of 2", "1 of 2"]


def test_output_goes_to_files(bulk: BulkSubmitter, tmp_path: Path) -> None:
    future = bulk.submit_command(
        ["sh", "-c", "echo out; echo err >&2"],
        stdout=str(tmp_path / "{{id}}.out"),
        stderr=str(tmp_path / "{{id}}.err"),
    )
    future.result(BOUND)
    assert (tmp_path / f"{future.job_name}.out").read_text() == "out\n"
    assert (tmp_path / f"{future.job_name}.err").read_text() == "err\n"
    assert future.stdout() == ""


def test_a_failed_job_raises_its_error(bulk: BulkSubmitter) -> None:
    future = bulk.submit_command(["sh", "-c", "echo the last line >&2; exit 3"], label="three")
    with pytest.raises(JobFailed) as caught:
        future.result(BOUND)
    assert str(caught.value).startswith(f"job {future.job_name} (three): exit status 3\n")
    assert "the last line" in str(caught.value)
    assert caught.value.result is future.job_result
    assert caught.value.result.exit_code == 3


def test_a_killed_job_names_its_signal(bulk: BulkSubmitter) -> None:
    with pytest.raises(JobFailed, match="killed by SIGKILL") as caught:
        bulk.submit_command(["sh", "-c", "kill -9 $$"]).result(BOUND)
    assert caught.value.result.signal == 9


def test_what_can_never_run_is_refused(bulk: BulkSubmitter) -> None:
    with pytest.raises(JobRefused, match="10000") as caught:
        bulk.submit_command(["true"], cores_per_task=10_000).result(BOUND)
    assert not caught.value.result.started


def test_a_duration_ends_a_job(bulk: BulkSubmitter) -> None:
    with pytest.raises(JobTimeout, match="its duration ran out"):
        bulk.submit_command(["sleep", "60"], duration="200ms").result(BOUND)


def test_a_running_job_is_cancelled(bulk: BulkSubmitter, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    future = bulk.submit_command(["sh", "-c", f"echo started > {fifo}; exec sleep 60"])
    assert fifo.read_text() == "started\n"  # returns once the job has written
    assert future.cancel("not wanted any more")
    with pytest.raises(JobCanceled, match="not wanted any more") as caught:
        future.result(BOUND)
    assert caught.value.result.started
    assert not future.cancel()


def test_a_waiting_job_is_cancelled(instance: str) -> None:
    with BulkSubmitter(instance, max_active_jobs=1) as bulk:
        first = bulk.submit_command(["sleep", "60"])
        second = bulk.submit_command(["sleep", "60"])
        second.cancel()
        with pytest.raises(JobCanceled) as caught:
            second.result(BOUND)
        assert not caught.value.result.started
        assert second.job_id is None and second.job_name == ""
        assert second.stdout() == ""  # it has printed nothing, for certain
        assert bulk.outstanding == 1
        assert bulk.cancel() == 1
        assert isinstance(first.exception(BOUND), JobCanceled)


def test_jobs_come_back_as_they_end(bulk: BulkSubmitter, tmp_path: Path) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    slow = bulk.submit_command(["cat", str(fifo)])
    quick = bulk.submit_command(["true"])
    ended = bulk.as_completed(BOUND)
    assert next(ended) is quick
    later = bulk.submit_command(["false"])
    fifo.write_text("open")
    assert set(ended) == {slow, later}
    assert list(bulk) == []


def test_as_completed_gives_up_in_time(bulk: BulkSubmitter) -> None:
    bulk.submit_command(["sleep", "60"])
    with pytest.raises(concurrent.futures.TimeoutError, match="1 job"):
        next(bulk.as_completed(timeout=0.1))
    assert not bulk.wait(0.1)
    bulk.cancel()


def futures_alive() -> list[JobFuture]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is JobFuture]


def test_nothing_is_kept_of_an_ended_job_if_ended_jobs_are_not_kept(instance: str) -> None:
    before = len(futures_alive())
    ended: list[str] = []
    with BulkSubmitter(instance, keep_ended=False) as bulk:
        for number in range(100):
            future = bulk.submit_command(["true"], label=str(number))
            future.add_done_callback(lambda future: ended.append(future.label))  # type: ignore[attr-defined]
        del future
        assert bulk.wait(BOUND)
        with pytest.raises(RuntimeError, match="keep_ended=True"):
            next(bulk.as_completed())
        # The threads may still have the last batch in hand, until the next event.
        bulk.submit_command(["true"]).result(BOUND)
        assert len(futures_alive()) - before < 10
    assert sorted(ended, key=int) == [str(number) for number in range(100)]
    assert len(futures_alive()) == before


def test_a_job_that_ended_before_the_iteration_is_yielded_and_then_not_kept(bulk: BulkSubmitter) -> None:
    for number in range(3):
        bulk.submit_command(["true"], label=str(number))
    assert bulk.wait(BOUND)
    labels = [future.label for future in bulk.as_completed()]
    assert sorted(labels) == ["0", "1", "2"]
    assert list(bulk.as_completed()) == []


def test_the_standard_library_waits_for_these_futures(bulk: BulkSubmitter) -> None:
    futures = [bulk.submit_command([name]) for name in ("true", "false", "true")]
    done, not_done = concurrent.futures.wait(futures, BOUND)
    assert (len(done), len(not_done)) == (3, 0)
    assert [future.exception() is None for future in futures] == [True, False, True]


def test_no_more_jobs_are_active_than_allowed(instance: str, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with BulkSubmitter(instance, max_active_jobs=1) as bulk:
        for _ in range(6):
            bulk.submit_command(["sh", "-c", f"mkdir {lock} && sleep 0.05 && rmdir {lock}"])
        assert [future.job_result.status for future in bulk] == [JobStatus.COMPLETED] * 6


def test_leaving_the_block_waits_for_the_jobs(instance: str) -> None:
    with BulkSubmitter(instance) as bulk:
        futures = [bulk.submit_command(["sleep", "0.2"]) for _ in range(4)]
    assert all(future.done() and future.job_result.ok for future in futures)


def test_leaving_the_block_by_an_exception_cancels_them(instance: str) -> None:
    with pytest.raises(KeyboardInterrupt), BulkSubmitter(instance) as bulk:
        future = bulk.submit_command(["sleep", "60"])
        raise KeyboardInterrupt
    assert isinstance(future.exception(0), JobCanceled)


def test_nothing_is_taken_before_the_start_and_after_the_end(instance: str) -> None:
    bulk = BulkSubmitter(instance)
    with pytest.raises(RuntimeError, match="not started"):
        bulk.submit_command(["true"])
    with bulk:
        pass
    bulk.close()
    with pytest.raises(ExecutorClosed):
        bulk.submit_command(["true"])
    assert bulk.outstanding == 0


def test_what_is_no_jobspec_is_refused_at_once(bulk: BulkSubmitter, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(JobspecError, match="UTF-8"):
        bulk.submit(binary)
    with pytest.raises(JobspecError, match=r"a file is given as a pathlib\.Path"):
        bulk.submit("jobs/1.json")
    with pytest.raises(JobspecError, match="tasks"):
        bulk.submit({"version": 1, "resources": [], "attributes": {}})
    with pytest.raises(JobspecError, match="cannot be written as JSON"):
        bulk.submit({"version": {1}})
    with pytest.raises(FileNotFoundError):
        bulk.submit(tmp_path / "absent")
    with pytest.raises(ValueError, match="urgency must be from 0"):
        bulk.submit(jobspec("true"), urgency=32)
    with pytest.raises(Exception, match="'num_task'"):
        bulk.submit_command(["true"], num_task=2)
    assert bulk.outstanding == 0


@pytest.mark.flux
def test_an_instance_that_is_not_there() -> None:
    with (
        pytest.raises(InstanceUnavailable, match="/nowhere/local-0"),
        BulkSubmitter("local:///nowhere/local-0"),
    ):
        pass


# -- user code that does not behave -----------------------------------------------------------------


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), ValueError("x")], ids=repr)
def test_no_exception_in_a_callback_stops_anything(
    bulk: BulkSubmitter, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise raised

    called = threading.Event()
    first = bulk.submit_command(["sleep", "0.2"])
    first.add_done_callback(fails)
    first.add_done_callback(lambda _: called.set())
    assert first.result(BOUND).ok
    helpers.wait_event(called, BOUND)
    assert bulk.submit_command(["true"]).result(BOUND).ok
    assert repr(raised) in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_at_once_that_it_cannot_submit(bulk: BulkSubmitter) -> None:
    outstanding = bulk.submit_command(["sleep", "3600"])
    for check in (
        lambda: bulk.submit_command(["true"]),
        lambda: bulk.submit(jobspec("true")),
        bulk.wait,
        lambda: next(bulk.as_completed()),
        outstanding.cancel,
    ):
        assert f"is a fork of process {os.getpid()}, which started 'bulk-submitter'" in helpers.in_a_fork(
            check
        )
    assert helpers.in_a_fork(bulk.close) == "nothing"
    assert not outstanding.done()
    outstanding.cancel()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fifo", "a FIFO; a jobspec must be in a regular file"),
        ("directory", "a directory; a jobspec"),
        ("/dev/zero", "a device; a jobspec"),
        ("endless", "longer than 64 MiB"),
        ("nul", "null character"),
    ],
)
def test_what_is_not_a_file_is_refused_at_once(bulk: BulkSubmitter, kind: str, message: str, tmp_path: Path):
    path = tmp_path / kind.strip("/")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "nul":
        path = tmp_path / "a\0b"
    else:
        path = Path(kind)
    with pytest.raises((JobspecError, OSError), match=message):
        bulk.submit(path)
