"""The embedded instance alone: pinning, order of jobs, its server, and kept output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import helpers
import pytest
from seam import Seam, files, jobspec, peer_job, shell

from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import JobRequest, JobStatus, Refusal
from parsl_flux_bulk.instances.local import kept_output, server, server_process
from parsl_flux_bulk.instances.local.client import LocalInstance
from parsl_flux_bulk.instances.output_parts import read_all
from parsl_flux_bulk.jobspec import Jobspec
from parsl_flux_bulk.worker.pinning import physical_cores

PHYSICAL_CORES = physical_cores()
CORES = len(PHYSICAL_CORES)
AFFINITY = [sys.executable, "-c", "import os; print(*sorted(os.sched_getaffinity(0)))"]
two_cores = pytest.mark.skipif(CORES < 2, reason="needs two cores")


@contextmanager
def embedded(**arguments: object) -> Iterator[Seam]:
    """A started embedded instance."""
    with embedded_in(LocalInstance(**arguments)) as seam:  # type: ignore[arg-type]
        yield seam


@contextmanager
def embedded_in(instance: LocalInstance) -> Iterator[Seam]:
    instance.start()
    seam = Seam(instance, instance.connect(), instance.completion(), "local")
    try:
        yield seam
    finally:
        seam.completion.close()
        seam.connection.close()
        instance.close()


@pytest.fixture
def seam() -> Iterator[Seam]:
    with embedded() as seam:
        yield seam


def output_of(seam: Seam, text: Jobspec) -> list[str]:
    job_id, result = seam.run_one(text)
    assert result.ok, result
    return sorted(read_all(seam.connection, job_id)[0].splitlines())


def private_directory(seam: Seam) -> Path:
    address = seam.completion.channel().environment["PARSL_FLUX_BULK_CHANNEL"]
    return Path(address.removeprefix("unix:")).parent


# -- cores -------------------------------------------------------------------------------------------


def cpus(cores: list[tuple[int, ...]]) -> str:
    return " ".join(str(cpu) for cpu in sorted(cpu for core in cores for cpu in core))


def test_a_job_is_pinned_to_its_core(seam: Seam) -> None:
    assert output_of(seam, jobspec(AFFINITY)) == [cpus(PHYSICAL_CORES[:1])]


@two_cores
def test_jobs_at_the_same_time_have_different_cores(seam: Seam, tmp_path: Path) -> None:
    wait = f"; echo done; while ! test -e {tmp_path}/go; do sleep 0.01; done"
    show = f"{sys.executable} -c '{AFFINITY[2]}'"
    ids = seam.submit(*[shell(show + wait, **files(f"{tmp_path}/{name}")) for name in "ab"])
    for name in "ab":
        helpers.wait_until(lambda: "done" in seam.wait_file(tmp_path / name))  # noqa: B023
    (tmp_path / "go").touch()
    assert all(result.ok for result in seam.wait(ids))
    seen = {(tmp_path / name).read_text().split("\n")[0] for name in "ab"}
    assert seen == {cpus([core]) for core in PHYSICAL_CORES[:2]}


@two_cores
def test_affinity_options(seam: Seam) -> None:
    all_of_them, first, second = (
        cpus(PHYSICAL_CORES[:2]),
        cpus(PHYSICAL_CORES[:1]),
        cpus(PHYSICAL_CORES[1:2]),
    )
    assert output_of(seam, jobspec(AFFINITY, tasks=2)) == [all_of_them] * 2
    assert output_of(seam, jobspec(AFFINITY, tasks=2, cpu_affinity="per-task")) == sorted([first, second])
    everything = cpus(PHYSICAL_CORES)
    assert output_of(seam, jobspec(AFFINITY, cpu_affinity="off")) == [everything]


@two_cores
def test_first_come_first_served_also_for_large_jobs(tmp_path: Path) -> None:
    with embedded(cores=2) as seam:
        note = "echo {} >> order"
        ids = seam.submit(
            shell("sleep 0.3; " + note.format("first"), cwd=tmp_path),
            shell(note.format("large"), cwd=tmp_path, cores=2),
            shell(note.format("small"), cwd=tmp_path),  # fits at once, but is behind the large one
        )
        assert all(result.ok for result in seam.wait(ids))
    assert (tmp_path / "order").read_text().split() == ["first", "large", "small"]


def test_urgency_goes_before_order(tmp_path: Path) -> None:
    with embedded(cores=1) as seam:
        requests = [JobRequest(shell("sleep 0.3"))] + [
            JobRequest(shell(f"echo {urgency} >> order", cwd=tmp_path), urgency)
            for urgency in (16, 1, 31, 16)
        ]
        ids = seam.connection.submit(requests)
        for job_id in ids:
            assert isinstance(job_id, int)
            seam.completion.watch(job_id)
        seam.wait(ids)  # type: ignore[arg-type]
    assert (tmp_path / "order").read_text().split() == ["31", "16", "16", "1"]


def test_exclusive_gets_every_core() -> None:
    with embedded() as seam:
        spec = jobspec(AFFINITY, nodes=1)
        spec.data["resources"][0]["exclusive"] = True
        assert output_of(seam, spec) == [cpus(PHYSICAL_CORES)]


def test_fewer_cores_than_there_are() -> None:
    with embedded(cores=1) as seam:
        assert seam.connection.capacity().cores == 1
        (answer,) = seam.connection.submit([JobRequest(jobspec(["true"], cores=2))])
        assert isinstance(answer, Refusal)
        assert "2 cores" in answer.reason
        assert "has 1" in answer.reason


def test_more_cores_than_there_are() -> None:
    with pytest.raises(ValueError, match=f"may use {CORES}"):
        LocalInstance(cores=CORES + 1)
    with embedded(cores=CORES + 2, oversubscribe=True) as seam:
        assert len(output_of(seam, jobspec(AFFINITY, tasks=CORES + 2))) == CORES + 2


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    show = "echo $CUDA_VISIBLE_DEVICES"
    with embedded(gpus=2) as seam:
        assert seam.connection.capacity().gpus == 2
        assert output_of(seam, shell(show, gpus=1)) == ["3"]
        assert output_of(seam, shell(show, gpus=2)) == ["3,5"]
        assert output_of(seam, shell(show)) == ["-1"]
        per_node = {"type": "node", "count": 2}
        text = shell(show, nodes=1, gpus=2, per_resource=per_node, gpu_affinity="per-task")
        assert output_of(seam, text) == ["3", "5"]
    with pytest.raises(InstanceUnavailable, match="names 3"):
        LocalInstance(gpus=4).start()


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"queue": "debug"}, "no queues"),
        ({"dependencies": [{"scheme": "afterok", "value": "1"}]}, "dependencies"),
        ({"constraints": {"properties": ["fast"]}}, "does not meet"),
        ({"constraints": {"hostlist": ["elsewhere"]}}, "does not meet"),
        ({"duration": -1}, "attributes.system.duration"),
        ({"environment": {"A": 1}}, "attributes.system.environment.A"),
        ({"shell": {"options": {"output": []}}}, "attributes.system.shell.options.output"),
    ],
)
def test_what_it_does_not_have_is_refused_in_words(seam: Seam, change: dict[str, object], words: str) -> None:
    spec = jobspec(["true"])
    spec.system.update(change)
    (answer,) = seam.connection.submit([JobRequest(spec)])
    assert isinstance(answer, Refusal)
    assert words in answer.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "rack"}, "'rack'"),
        ({"type": "node"}, "'slot'"),
        ({"with": [{"type": "memory", "count": 1}]}, "'memory'"),
        ({"with": [{"type": "gpu", "count": 1}]}, "has 0"),
        ({"with": []}, "'core'"),
    ],
)
def test_resources_that_it_does_not_have_are_refused_in_words(
    seam: Seam, change: dict[str, object], words: str
) -> None:
    spec = jobspec(["true"])
    spec.data["resources"][0].update(change)
    (answer,) = seam.connection.submit([JobRequest(spec)])
    assert isinstance(answer, Refusal)
    assert words in answer.reason


def test_constraints_that_this_host_meets(seam: Seam) -> None:
    spec = jobspec(["true"])
    host = os.uname().nodename
    spec.system["constraints"] = {"and": [{"hostlist": [host]}, {"not": [{"properties": ["x"]}]}]}
    assert seam.run_one(spec)[1].ok


# -- processes ---------------------------------------------------------------------------------------


def test_limits(seam: Seam) -> None:
    assert output_of(seam, shell("ulimit -n", rlimit={"nofile": 77, "unheard": 1})) == ["77"]
    assert output_of(seam, shell("ulimit -c", rlimit={"core": 0})) == ["0"]


def test_signal_before_the_duration_ends(seam: Seam) -> None:
    text = shell(
        "trap 'exit 7' USR1; while :; do sleep 0.02; done",
        duration=60,
        signal={"signum": 10, "timeleft": 58},
    )
    assert seam.run_one(text)[1].exit_code == 7


def test_a_script_without_interpreter_line_goes_to_the_shell(seam: Seam, tmp_path: Path) -> None:
    program = tmp_path / "script"
    program.write_text("echo from the shell $1\n")
    program.chmod(0o755)
    assert output_of(seam, jobspec([str(program), "x"])) == ["from the shell x"]


def test_the_others_are_ended_some_time_after_the_first(seam: Seam) -> None:
    script = "test $FLUX_TASK_RANK = 0 || exec sleep 600"
    pair = {"type": "core", "count": 2}
    _, result = seam.run_one(shell(script, per_resource=pair, exit_timeout="0.2s"))
    assert result.status is JobStatus.FAILED
    assert "exit-timeout" in result.note
    script = "test $FLUX_TASK_RANK = 0 && exit 5 || exec sleep 600"
    _, result = seam.run_one(shell(script, per_resource=pair, exit_on_error=1))
    assert result.exit_code == 5


def test_what_hides_from_the_process_group_ends_with_the_job(seam: Seam, tmp_path: Path) -> None:
    hide = "setsid sh -c 'setsid sleep 600 & echo $! > pid; exec sleep 600' &"
    script = f"{hide} while ! test -s pid; do sleep 0.01; done"
    _, result = seam.run_one(shell(script, cwd=tmp_path))
    assert result.ok
    helpers.wait_gone([int((tmp_path / "pid").read_text())])
    # Only the server is left of the processes that this one started.
    helpers.wait_until(lambda: len(helpers.own_processes()) - len(helpers.LONG_LIVED) <= 1)


def test_what_leaves_a_running_job_and_ends_is_reaped(seam: Seam, tmp_path: Path) -> None:
    leave = "(setsid sh -c 'echo $$ > pid' &)"
    (job_id,) = seam.submit(shell(f"{leave}; until test -e gate; do sleep 0.01; done", cwd=tmp_path))
    left = int(seam.wait_file(tmp_path / "pid"))
    helpers.wait_until(lambda: not Path(f"/proc/{left}").exists(), what="the end of a zombie")
    (tmp_path / "gate").touch()
    assert seam.wait([job_id])[0].ok


def test_a_job_has_no_descriptors_but_the_standard_ones(seam: Seam) -> None:
    # The last one is the listed directory's.
    assert output_of(seam, jobspec(["ls", "/proc/self/fd"])) == ["0", "1", "2", "3"]


def test_a_program_that_moved_is_found_again(seam: Seam, tmp_path: Path) -> None:
    directories = [tmp_path / "first", tmp_path / "second"]
    for directory in directories:
        directory.mkdir()
        program = directory / "which-one"
        program.write_text(f"#!/bin/sh\necho {directory.name}\n")
        program.chmod(0o755)
    job = jobspec(["which-one"], environment={"PATH": f"{directories[0]}:{directories[1]}:/usr/bin:/bin"})
    assert output_of(seam, job) == ["first"]
    (directories[0] / "which-one").unlink()
    assert output_of(seam, job) == ["second"]


def test_variables_of_another_instance_do_not_reach_jobs(seam: Seam) -> None:
    text = jobspec(["env"], environment={"FLUX_URI": "local:///elsewhere", "PMI_FD": "9"})
    assert not [line for line in output_of(seam, text) if line.startswith(("FLUX_URI", "PMI_"))]


def test_scratch_directory_of_a_job(seam: Seam) -> None:
    (path,) = output_of(seam, shell("cd $FLUX_JOB_TMPDIR && touch file && pwd"))
    assert not os.path.exists(path)


def test_every_job_finds_its_scratch_directory_empty_and_private(seam: Seam) -> None:
    look = "ls -A $FLUX_JOB_TMPDIR; stat -c '%a %n' $FLUX_JOB_TMPDIR"
    paths = set()
    for change in (
        "true",
        "chmod 777 $FLUX_JOB_TMPDIR",
        "touch $FLUX_JOB_TMPDIR/file",
        "rmdir $FLUX_JOB_TMPDIR",
    ):
        (line,) = output_of(seam, shell(f"{look}; {change}"))
        mode, path = line.split()
        assert mode == "700"
        paths.add(path)
    assert len(paths) == 4


@pytest.mark.flux
@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["run", "-N1", "-n1"],
        ["run", "-N1", "--exclusive"],
        ["run", "--tasks-per-core=2", "--cores=1"],
        ["run", "-N1", "--cores=1", "--tasks-per-node=2"],
        ["submit", "--time-limit=5m", "--output=o-{{id}}", "--error=e", "--label-io", "--unbuffered"],
        ["submit", "--input=/etc/hostname", "-o", "cpu-affinity=per-task", "--signal=SIGUSR1@5s"],
        ["submit", "--env=A={{id}}", "--job-name=x", "--setattr=user.key=1"],
    ],
    ids=" ".join,
)
def test_jobspecs_made_by_flux_run_unchanged(seam: Seam, tmp_path: Path, arguments: list[str]) -> None:
    command = ["flux", *arguments, f"--cwd={tmp_path}", "--dry-run", "true"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    assert seam.run_one(Jobspec.parse(made.stdout))[1].ok


@pytest.mark.parametrize(
    "change",
    [
        {"duration": 1e9},  # more milliseconds than epoll counts
        {"shell": {"options": {"rlimit": {"nofile": 10**30}}}},
        {"shell": {"options": {"signal": {"signum": 1000}}}},
        {"shell": {"options": {"output": {"stdout": {"path": "x" * 5000}}}}},
    ],
)
def test_strange_jobs_do_no_harm_to_others(seam: Seam, change: dict[str, object]) -> None:
    """They may run, fail or be refused; the next one runs."""
    spec = jobspec(["true"])
    spec.system.update(change)
    (answer,) = seam.connection.submit([JobRequest(spec)])
    if not isinstance(answer, Refusal):
        seam.completion.watch(answer)
        seam.wait([answer])
    assert seam.run_one(jobspec(["true"]))[1].ok


# -- the server --------------------------------------------------------------------------------------


def test_a_start_in_two_steps() -> None:
    instance = LocalInstance()
    instance.launch()
    with embedded_in(instance) as seam:
        assert seam.run_one(jobspec(["true"]))[1].ok


def test_a_user_that_ignores_sigchld() -> None:
    """A program started with SIGCHLD ignored has no zombies to wait for."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with embedded() as seam:
            assert seam.run_one(shell("exit 3"))[1].exit_code == 3
            is_default = "import signal as s; assert s.getsignal(s.SIGCHLD) is s.SIG_DFL"
            assert seam.run_one(jobspec([sys.executable, "-c", is_default]))[1].ok
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_was_only_launched_is_closed() -> None:
    """The leak check sees what is left."""
    instance = LocalInstance()
    instance.launch()
    instance.close()


def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = LocalInstance()
    with monkeypatch.context() as patch:
        patch.setattr(server_process, "SERVER", "parsl_flux_bulk.no_such_module")
        instance.launch()
        with pytest.raises(InstanceUnavailable, match=r"(?s)did not start: .*No module named"):
            instance.start()
        with pytest.raises(InstanceLost, match="not started"):
            instance.connect()
    with embedded_in(instance) as seam:
        assert seam.run_one(jobspec(["true"]))[1].ok


def test_a_killed_server_is_an_instance_lost(tmp_path: Path) -> None:
    with embedded() as seam:
        directory = private_directory(seam)
        (job_id,) = seam.submit(shell("setsid sleep 600 & echo $! > pid; exec sleep 600", cwd=tmp_path))
        hidden = int(seam.wait_file(tmp_path / "pid"))
        (server_pid,) = [
            pid
            for pid in helpers.own_processes()
            if "instances.local.server" in helpers.command_of(pid) and pid not in helpers.LONG_LIVED
        ]
        os.kill(server_pid, 9)
        with pytest.raises(InstanceLost, match="killed by signal 9"):
            while True:
                seam.completion.poll(30)
        for call in (
            lambda: seam.connection.submit([JobRequest(jobspec(["true"]))]),
            lambda: seam.connection.cancel([job_id], ""),
            lambda: read_all(seam.connection, job_id),
            seam.connection.capacity,
            lambda: seam.completion.watch(job_id),
            lambda: seam.completion.poll(0),
            seam.instance.connect,
            seam.instance.completion,
        ):
            with pytest.raises(InstanceLost):
                call()
        seam.completion.send(1, b"to nobody")
        helpers.wait_gone([hidden])
        assert not directory.exists()


def test_nothing_is_left_on_disk(tmp_path: Path) -> None:
    with embedded() as seam:
        directory = private_directory(seam)
        assert directory.stat().st_mode & 0o777 == 0o700
        seam.run(shell("echo kept"))
    assert not directory.exists()


def test_output_is_kept_within_bounds(seam: Seam) -> None:
    spool = private_directory(seam) / "spool"
    ids = seam.submit(*[shell("echo out")] * 5, *[jobspec(["true"])] * 5)
    seam.wait(ids)
    # Those without output leave nothing.
    assert sorted(path.name for path in spool.iterdir() if path.stat().st_size) == [
        f"{job_id}.out" for job_id in ids[:5]
    ]
    size = kept_output.KEPT_OUTPUT_BYTES // 2 + 1
    first, second = (seam.run_one(shell(f"truncate -s {size} /proc/self/fd/1"))[0] for _ in range(2))
    assert not (spool / f"{first}.out").exists()
    assert (spool / f"{second}.out").stat().st_size == size


def test_a_long_temporary_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with embedded() as seam:
        (job_id,) = seam.submit(peer_job('say(b"here")', tmp_path, seam.completion))
        seam.pump(lambda: bool(seam.messages))
        seam.wait([job_id])
    assert not list(deep.iterdir())


def test_ctrl_c_does_not_reach_jobs(tmp_path: Path) -> None:
    source = f"""
import os, signal, time
from parsl_flux_bulk.instances.local.client import LocalInstance
from parsl_flux_bulk.instances.base import JobRequest
from parsl_flux_bulk.jobspec import Jobspec
instance = LocalInstance()
instance.start()
connection, completion = instance.connect(), instance.completion()
(job,) = connection.submit([JobRequest(Jobspec({shell("sleep 0.3; exit 9").data!r}))])
completion.watch(job)
try:
    os.killpg(0, signal.SIGINT)  # as a terminal does
    time.sleep(30)
except KeyboardInterrupt:
    print(completion.poll(30)[0].result.exit_code)
instance.close()
"""
    done = helpers.run_script(source, tmp_path)
    assert (done.stdout, done.stderr) == ("9\n", "")


def test_a_fork_of_the_user_does_not_keep_it_alive(tmp_path: Path) -> None:
    source = """
import os, time
from parsl_flux_bulk.instances.local.client import LocalInstance
instance = LocalInstance()
instance.start()
child = os.fork()
if child == 0:
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""
    with helpers.script(source, tmp_path) as user:
        assert user.stdout is not None
        child = int(user.stdout.readline())
        try:
            left = helpers.descendants(user.pid) - {child}
            assert len(left) == 1
            user.kill()
            helpers.wait_gone(left)
        finally:
            os.kill(child, 9)  # or it would keep the pipes open that are read below


def test_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """The server starts without site-packages; so must every module that it imports."""
    modules = tmp_path / "only"
    package = Path(server.__file__).parents[2]
    shutil.copytree(package, modules / "parsl_flux_bulk", ignore=shutil.ignore_patterns("__pycache__"))
    program = f"import sys; sys.path.append({str(modules)!r}); import {server.__name__}; print('ok')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_an_absurd_number_of_tasks_a_core_is_refused() -> None:
    with embedded() as seam:
        absurd = jobspec(["true"], per_resource={"type": "core", "count": 2**30})
        (answer,) = seam.connection.submit([JobRequest(absurd)])
    assert isinstance(answer, Refusal)
    assert f"{2**30} tasks" in answer.reason
