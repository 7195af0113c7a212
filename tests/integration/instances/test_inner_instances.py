"""Flux instances inside a Flux instance, real ones: what runs where, and what becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import helpers
import pytest

import parsl_flux_bulk
from parsl_flux_bulk.bulk.submitter import BulkSubmitter, JobFuture
from parsl_flux_bulk.errors import BlockLost, JobFailed
from parsl_flux_bulk.instances.federation import inner_instance_launcher

pytestmark = pytest.mark.flux

BOUND = 60.0


OUTER = 0


def member(future: JobFuture) -> int:
    """The number of the instance that ran a job: that of the range which the job's id is in."""
    assert future.job_id is not None
    return future.job_id >> 56


@pytest.fixture(autouse=True)
def package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(parsl_flux_bulk.__file__).parent.parent))
    monkeypatch.chdir(tmp_path)


def bulksubmit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "parsl_flux_bulk", *arguments],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env={**os.environ, **environment},
    )


def jobs_of(uri: str) -> list[str]:
    """Names of the active jobs of an instance itself."""
    return helpers.flux(uri, "jobs", "-no", "{name}").split()


def brokers_inside(uri: str) -> list[int]:
    """Process ids of the brokers whose instances are jobs of an instance."""
    outer = int(helpers.flux(uri, "getattr", "broker.pid"))
    return [pid for pid in helpers.descendants(outer) if "flux-broker" in helpers.command_of(pid)]


def test_every_job_runs_once_and_inside(flux_uri: str, tmp_path: Path) -> None:
    with BulkSubmitter(flux_uri, instances=2) as bulk:
        futures = [bulk.submit_command(["sh", "-c", f"echo {n} >> {tmp_path}/ran"]) for n in range(40)]
        for future in futures:
            assert future.result(BOUND).ok
        where, inside = Counter(map(member, futures)), jobs_of(flux_uri)
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(40))
    assert OUTER not in where and len(where) == 2 and min(where.values()) >= 10
    assert inside == ["bulksubmit"] * 2
    assert jobs_of(flux_uri) == []


def test_no_two_of_their_jobs_have_the_same_id(flux_uri: str, tmp_path: Path) -> None:
    with BulkSubmitter(flux_uri, instances=2) as bulk:
        output = str(tmp_path / "{{id}}")
        futures = [bulk.submit_command(["sh", "-c", "echo $FLUX_JOB_ID"], stdout=output) for _ in range(60)]
        for future in futures:
            future.result(BOUND)
        names = {future.job_name for future in futures}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert len(names) == 60
    assert all((tmp_path / name).read_text() == f"{name}\n" for name in names)
    assert len(set(map(member, futures))) == 2


def test_they_have_their_own_cores(flux_uri: str) -> None:
    with BulkSubmitter(flux_uri, instances=2) as bulk:
        futures = [bulk.submit_command(["sh", "-c", "nproc; sleep 0.2"]) for _ in range(6)]
        for future in futures:
            future.result(BOUND)
        assert {future.stdout() for future in futures} == {"1\n"}


def test_a_job_that_is_too_large_has_them_dissolved(flux_uri: str) -> None:
    with BulkSubmitter(flux_uri, instances=2) as bulk:
        small = [bulk.submit_command(["true"]) for _ in range(4)]
        large = bulk.submit_command(["sh", "-c", "nproc"], cores_per_task=2)
        later = bulk.submit_command(["true"])
        assert large.result(BOUND).ok  # only once the cores are free: so they have ended
        assert large.stdout() == "2\n"
        assert later.result(BOUND).ok
        assert OUTER not in map(member, small)
        assert [member(large), member(later)] == [OUTER, OUTER]
        assert "bulksubmit" not in jobs_of(flux_uri)


def test_those_that_come_late_are_done_without(
    flux_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_instance_launcher, "START_TIMEOUT", 0.2)
    os.mkfifo(tmp_path / "fifo")
    with BulkSubmitter(flux_uri) as others:
        busy = others.submit_command(
            ["sh", "-c", f"echo > {tmp_path}/started; cat {tmp_path}/fifo"], cores_per_task=2
        )
        helpers.wait_until((tmp_path / "started").exists, BOUND)
        with BulkSubmitter(flux_uri, instances=2) as bulk:
            futures = [bulk.submit_command(["true"]) for _ in range(3)]
            (tmp_path / "fifo").write_text("")
            assert all(future.result(BOUND).ok for future in [busy, *futures])
            assert set(map(member, futures)) == {OUTER}
    last = ("jobs", "-a", "--name=bulksubmit", "-c2", "-no", "{status}")
    assert helpers.flux(flux_uri, *last).split() == ["CANCELED"] * 2


def test_work_starts_with_the_first_that_is_ready(
    flux_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_instance_launcher, "START_TIMEOUT", 2 * BOUND)
    os.mkfifo(tmp_path / "fifo")
    with BulkSubmitter(flux_uri) as others:
        busy = others.submit_command(["sh", "-c", f"echo > {tmp_path}/started; cat {tmp_path}/fifo"])
        helpers.wait_until((tmp_path / "started").exists, BOUND)
        with BulkSubmitter(flux_uri, instances=2) as bulk:
            futures = [bulk.submit_command(["true"]) for _ in range(3)]
            assert all(future.result(BOUND).ok for future in futures)
            assert OUTER not in map(member, futures)
            assert not busy.done()
            (tmp_path / "fifo").write_text("")


def test_the_output_of_jobs_and_their_errors_are_there(flux_uri: str) -> None:
    with BulkSubmitter(flux_uri, instances=2) as bulk:
        well, badly = (
            bulk.submit_command(["echo", "hello"]),
            bulk.submit_command(["sh", "-c", "echo no >&2; exit 3"]),
        )
        well.result(BOUND)
        assert well.stdout() == "hello\n"
        with pytest.raises(JobFailed, match=r"exit status 3\n.*\n *no"):
            badly.result(BOUND)


def test_one_that_dies_fails_its_jobs_only(flux_uri: str, tmp_path: Path) -> None:
    with BulkSubmitter(flux_uri, instances=2) as bulk:
        held = [
            bulk.submit_command(["sh", "-c", f"echo {n} > {tmp_path}/started{n}; cat {tmp_path}/fifo"])
            for n in range(2)
        ]
        os.mkfifo(tmp_path / "fifo")
        helpers.wait_until(lambda: len(list(tmp_path.glob("started*"))) == 2, BOUND)
        os.kill(brokers_inside(flux_uri)[0], signal.SIGKILL)
        with pytest.raises(BlockLost, match="lost the connection to Flux"):
            next(bulk.as_completed(BOUND)).result()
        later = [bulk.submit_command(["true"]) for _ in range(4)]
        (tmp_path / "fifo").write_text("")
        assert sum(future.exception(BOUND) is None for future in held) == 1
        assert all(future.result(BOUND).ok for future in later)


@pytest.mark.parametrize("own", [False, True], ids=["attached", "owned"])
def test_nothing_is_left_when_the_script_is_killed(own: bool, flux_uri: str, tmp_path: Path) -> None:
    where = "flux" if own else flux_uri
    source = f"""
    import os, time
    from parsl_flux_bulk.bulk.submitter import BulkSubmitter
    bulk = BulkSubmitter({where!r}, instances=2)
    bulk.start()
    bulk.submit_command(["sh", "-c", "echo > started; sleep 600"])
    while not os.path.exists("started"):
        time.sleep(0.05)
    print("running", flush=True)
    time.sleep(600)
    """
    with helpers.script(source, tmp_path) as user:
        assert user.stdout is not None and user.stdout.readline() == "running\n"
        if own:
            all_of_it = helpers.descendants(user.pid)
        else:
            all_of_it = {p for pid in brokers_inside(flux_uri) for p in (pid, *helpers.descendants(pid))}
        commands = [helpers.command_of(pid) for pid in all_of_it]
        assert sum("flux-broker" in command for command in commands) == 2 + own
        assert "sleep 600" in commands
        user.send_signal(signal.SIGKILL)
        helpers.wait_gone(all_of_it, 30.0)
        helpers.wait_until(lambda: jobs_of(flux_uri) == [], 30.0, "no job is left")


def test_over_the_nodes_of_a_larger_instance(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with helpers.flux_instance("-s4") as uri, BulkSubmitter(uri, instances=2) as bulk:
        # Two whole nodes fit one of them.
        futures = [
            bulk.submit_command(["flux", "getattr", "size"], num_nodes=2, num_tasks=2, cores_per_task=cores)
            for _ in range(4)
        ]
        for future in futures:
            assert future.result(BOUND).ok
        assert OUTER not in map(member, futures)


def test_the_command_starts_as_many_as_told() -> None:
    run = bulksubmit("--verbose", "--instances", "2", "--copies", "20", "--", "true", FLUX_URI="")
    assert run.returncode == 0, run.stderr
    assert f"with {min(2, os.cpu_count() or 1)} inner instances" in run.stderr
    assert "Ran 20 jobs" in run.stdout


def test_the_command_refuses_them_without_flux() -> None:
    run = bulksubmit("--local", "--instances", "2", "--copies", "2", "--", "true")
    assert run.returncode == 2
    assert (
        run.stderr == "bulksubmit: instances=2 needs Flux: only a Flux instance can have others inside it\n"
    )


def test_a_TMPDIR_too_long_for_a_socket_is_not_used(flux_uri: str, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    run = bulksubmit("--instances=2", "--copies=4", "--", "true", FLUX_URI=flux_uri, TMPDIR=str(long))
    assert run.returncode == 0
    assert "not used by the broker: missing, not writable, or too long" in run.stderr
    assert "inner instance ended" not in run.stderr
