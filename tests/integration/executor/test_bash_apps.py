"""Bash apps, in warm workers and as jobs of their own: what they leave and raise is what Parsl's would."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import apps
import parsl
import parsl.app.errors as pe
import pytest
from commands import attribute_error, command, forgetful, formatted, of_inputs, own_error, own_exit
from helpers import run_documentation, script, wait_gone, wait_until
from parsl.config import Config
from parsl.data_provider.files import File
from specifications import BAD_SECONDS
from typeguard import TypeCheckError

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.errors import JobCanceled, JobFailed, JobRefused, JobTimeout

BOUND = 60.0
NewExecutor = Callable[..., AbstractContextManager[FluxBulkExecutor]]
Run = Callable[..., Any]


def submit(
    executor: FluxBulkExecutor, function: Callable[..., str], spec: dict[str, Any], *args: Any, **kwargs: Any
):
    """Submit as Parsl does: with the function in all its wrapping."""
    return executor.submit(parsl.bash_app(function).wrapped_remote_function, spec, *args, **kwargs)


@pytest.fixture
def run(executor: FluxBulkExecutor) -> Run:
    """Runs a command as a bash app to its end."""
    return lambda *args, **kwargs: submit(executor, command, {}, *args, **kwargs).result(BOUND)


def notes_of(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def header(text: str) -> str:
    return f"--> executable follows <--\n{text}\n--> end executable <--\n"


@pytest.mark.flux
def test_neither_flux_nor_an_app_reads_the_users_bashrc(new_executor, monkeypatch, tmp_path):
    """Bash would, with a socket as its standard input, in a script that no shell started."""
    (tmp_path / ".bashrc").write_text("echo $$ $0 >> ~/read\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SHLVL")
    with new_executor("flux", tasks_per_job=1) as executor:
        assert submit(executor, command, {}, f"echo $HOME > {tmp_path}/home").result(BOUND) == 0
    assert (tmp_path / "home").read_text() == f"{tmp_path}\n"
    assert not (tmp_path / "read").exists()


# -- output ------------------------------------------------------------------------------------------


def test_the_result_is_0(run: Run) -> None:
    assert run("true") == 0


def test_streams_go_to_files_in_new_directories_and_stderr_begins_with_the_command(run, tmp_path):
    out, err = tmp_path / "new" / "out", tmp_path / "other" / "new" / "err"
    text = "echo to out; echo to err >&2"
    run(text, stdout=str(out), stderr=str(err))
    assert out.read_text() == "to out\n"
    assert err.read_text() == header(text) + "to err\n"


@pytest.mark.parametrize("as_path", [str, Path], ids=["str", "Path"])
def test_a_path_alone_appends(run, tmp_path, as_path):
    out = as_path(tmp_path / "out")
    run("echo 1", stdout=out)
    run("echo 2", stdout=out)
    assert Path(out).read_text() == "1\n2\n"


@pytest.mark.parametrize(("mode", "left"), [("w", "2\n"), ("a", "1\n2\n"), ("a+", "1\n2\n")])
def test_a_mode_says_whether_to_truncate(run, tmp_path, mode, left):
    out, err = tmp_path / "out", tmp_path / "err"
    run("echo 1; echo 1 >&2", stdout=(str(out), mode), stderr=(str(err), mode))
    run("echo 2; echo 2 >&2", stdout=(str(out), mode), stderr=(str(err), mode))
    assert out.read_text() == left
    assert err.read_text().count("executable follows") == left.count("\n")


def test_a_file_object_truncates(run, tmp_path):
    out = tmp_path / "out"
    out.write_text("before\n")
    run("echo after", stdout=File(str(out)))
    assert out.read_text() == "after\n"


def test_both_streams_may_share_a_file(run, tmp_path):
    run("echo out; echo err >&2", stdout=str(tmp_path / "log"), stderr=str(tmp_path / "log"))
    text = (tmp_path / "log").read_text()
    assert text.startswith("--> executable") and "\nout\n" in text and "\nerr\n" in text


def test_output_without_a_file_goes_below_the_working_directory(executor, run):
    run("echo nowhere in particular")
    kept = Path(executor.run_dir, executor.label)
    wait_until(
        lambda: any("nowhere in particular" in f.read_text() for f in kept.rglob("*.out")), what="the output"
    )


def test_relative_paths_are_relative_to_the_working_directory(executor, tmp_path):
    spec = {"cwd": str(tmp_path)}
    future = submit(executor, command, spec, "pwd; touch made", stdout="sub/out", outputs=[File("made")])
    assert future.result(BOUND) == 0
    assert (tmp_path / "sub" / "out").read_text() == f"{tmp_path}\n"


def test_the_command_is_what_the_function_returns(executor, tmp_path):
    out = tmp_path / "out"
    text = 'for i in {0} \'two words\' "ünï"; do\n  echo "$i"\ndone'
    future = submit(executor, formatted, {}, text, 7, stdout=str(out))
    assert future.result(BOUND) == 0
    assert out.read_text() == "7\ntwo words\nünï\n"


def test_inputs_and_outputs(executor, tmp_path):
    (tmp_path / "in").write_text("content")
    inputs, outputs = [File(str(tmp_path / "in"))], [File(str(tmp_path / "out"))]
    assert submit(executor, of_inputs, {}, inputs=inputs, outputs=outputs).result(BOUND) == 0
    assert (tmp_path / "out").read_text() == "content"


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("exit 3", 3),
        ("no-such-command", 127),
        ("/dev/null", 126),
        ("exit 137", 137),
        ("exit 255", 255),
        ("kill -TERM $$", -15),
        ("kill -KILL $$", -9),
        ("bash -c 'kill -KILL $$'; exit $?", 137),
    ],
)
def test_an_exit_code_or_signal_is_as_subprocess_reports_it(run, text, code):
    with pytest.raises(pe.BashExitFailure) as caught:
        run(text)
    assert (caught.value.app_name, caught.value.exitcode) == ("command", code)
    assert str(caught.value) == f"bash_app command failed with unix exit code {code}"


def test_an_error_notes_where_the_output_is(run, tmp_path):
    out, err = str(tmp_path / "out"), str(tmp_path / "err")
    with pytest.raises(pe.BashExitFailure) as caught:
        run("echo the reason >&2; exit 1", stdout=out, stderr=err)
    assert f"stdout in {out}, stderr in {err}" in notes_of(caught.value)


@pytest.mark.parametrize("named", [False, True])
def test_an_error_notes_the_last_lines_of_standard_error_job_and_host(run, tmp_path, named):
    streams = {"stderr": str(tmp_path / "err")} if named else {}
    run("echo 'of another command' >&2", **streams)
    with pytest.raises(pe.BashExitFailure) as caught:
        run("seq 1 30000 >&2; echo reason >&2; exit 2", **streams)
    notes = notes_of(caught.value)
    assert notes.endswith("\n29999\n30000\nreason")
    assert "of another command" not in notes
    assert "job " in notes and len(notes) < 2000


def test_a_failure_costs_its_worker_no_import_of_parsl(new_executor, where, tmp_path):
    failures = [
        (command, ("exit 2",), {}, pe.BashExitFailure),
        (command, ("sleep 60",), {"walltime": 0.1}, pe.AppTimeout),
        (command, ("a\0b",), {}, pe.AppException),
        (command, ("true",), {"stdout": str(tmp_path)}, pe.BadStdStreamFile),
        (command, ("true",), {"stdout": ("a", "badmode")}, pe.BadStdStreamFile),
        (attribute_error, (), {}, pe.BashAppNoReturn),
        (formatted, ("echo {0} {1}", 1), {}, pe.AppBadFormatting),
        (forgetful, (), {}, ValueError),
    ]
    with new_executor(where) as executor:
        for function, args, kwargs, error in failures:
            for _ in range(4):
                with pytest.raises(error) as caught:
                    submit(executor, function, {}, *args, **kwargs).result(BOUND)
                assert type(caught.value) is error
        for _ in range(4):
            assert executor.submit(apps.modules, {}, "parsl").result(BOUND) == []


def test_a_background_process_of_a_command_keeps_its_standard_error(new_executor, where, tmp_path):
    done = tmp_path / "done"
    with new_executor(where) as executor:
        background = f"(sleep 0.3; seq 1 30000 >&2 && touch {done}) & exit 0"
        assert submit(executor, command, {}, background).result(BOUND) == 0
        wait_until(done.exists, BOUND)


def test_missing_outputs(run, tmp_path):
    there, missing = File(str(tmp_path / "there")), File(str(tmp_path / "missing"))
    with pytest.raises(pe.MissingOutputs) as caught:
        run(f"touch {there}", outputs=[there, missing])
    assert [f.filepath for f in caught.value.outputs] == [missing.filepath]
    assert caught.value.reason == "Missing outputs from app command"


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (forgetful, ValueError, "Expected a str for bash_app commandline, got <class 'NoneType'>"),
        (attribute_error, pe.BashAppNoReturn, "Bash app 'attribute_error' did not return a value"),
        (own_error, apps.Planned, "while composing"),
    ],
)
def test_a_function_that_gives_no_command(executor, run, function, error, words):
    bad, good = submit(executor, function, {}), submit(executor, command, {}, "true")
    with pytest.raises(error, match=words):
        bad.result(BOUND)
    assert good.result(BOUND) == 0


def test_a_template_without_enough_values(executor):
    with pytest.raises(pe.AppBadFormatting, match="app 'formatted' with IndexError"):
        submit(executor, formatted, {}, "echo {0} {1}", 1).result(BOUND)


def test_a_function_that_exits_ends_no_more_than_its_task(executor, run):
    from parsl_flux_bulk.errors import TaskCrashed

    with pytest.raises(TaskCrashed, match=r"sys\.exit\(3\)"):
        submit(executor, own_exit, {}).result(BOUND)
    assert run("true") == 0


def test_a_command_that_cannot_be_passed(run):
    for text in ("echo \0", "true " + "x" * 200_000):
        with pytest.raises(pe.AppException, match="App command caught exception"):
            run(text)


@pytest.mark.parametrize("which", ["stdout", "stderr"])
@pytest.mark.parametrize("spec", ["/proc/no/such/file", ("file", "no mode")], ids=["path", "mode"])
def test_a_stream_that_cannot_be_opened(run, tmp_path, monkeypatch, which, spec):
    with pytest.raises(pe.BadStdStreamFile, match=str(spec[0] if isinstance(spec, tuple) else spec)):
        run("true", **{which: spec})


# -- time --------------------------------------------------------------------------------------------


def started_until_timeout(run, text, walltime, pids, count):
    """Run a command that starts so many processes; return their pids when its walltime has ended it."""
    for seconds in (walltime, 4 * walltime, 16 * walltime):
        with pytest.raises(pe.AppTimeout, match=f"App command exceeded walltime: {seconds} seconds"):
            run(text, walltime=seconds)
        if pids.exists() and len(started := pids.read_text().split()) == count:
            return list(map(int, started))
        pids.unlink(missing_ok=True)  # A busy machine has not started all of them.
    raise AssertionError(f"not started within {seconds} s")


@pytest.mark.parametrize("walltime", [0.4, 1])
def test_a_walltime_ends_the_command_and_all_that_it_started(run, tmp_path, walltime):
    pids = tmp_path / "pids"
    text = f"(sleep 301 & echo $! >> {pids}; exec sleep 302) & echo $! >> {pids}; sleep 303"
    wait_gone(started_until_timeout(run, text, walltime, pids, 2))


def test_a_walltime_also_ends_what_takes_no_notice_of_sigterm(run, tmp_path):
    pid = tmp_path / "pid"
    text = f"trap '' TERM ALRM; echo $$ > {pid}; while true; do sleep 0.05; done"
    wait_gone(started_until_timeout(run, text, 0.5, pid, 1))


@pytest.mark.parametrize("walltime", [0.001, 0])
def test_a_walltime_of_next_to_nothing(run, walltime):
    with pytest.raises(pe.AppTimeout):
        run("sleep 1", walltime=walltime)


def test_a_walltime_that_is_enough(run):
    assert run("sleep 0.1", walltime=20) == 0
    assert run("true", walltime=1e9) == 0


@pytest.mark.parametrize("spec", [["out", "w"], ("out", None), (42, "w"), ("out", "w", 42), ("out",)])
def test_a_stream_that_is_neither_a_path_nor_a_path_and_a_mode(run, spec):
    for which in ("stdout", "stderr"):
        with pytest.raises(TypeCheckError):
            run("true", **{which: spec})


@pytest.mark.parametrize("walltime", BAD_SECONDS)
def test_a_walltime_that_is_no_number(run, walltime):
    with pytest.raises(ValueError, match=r"walltime must be a number of seconds, from 0 to .*, not "):
        run("true", walltime=walltime)


def test_what_an_earlier_command_left_running_is_not_ended_by_a_walltime(executor, run, tmp_path):
    if executor.tasks_per_job == 1:
        pytest.skip("a job ends with its last process")
    pid = tmp_path / "pid"
    run(f"sleep 304 > /dev/null 2>&1 & echo $! > {pid}")
    left = int(pid.read_text())
    with pytest.raises(pe.AppTimeout):
        run("sleep 305", walltime=0.2)
    os.kill(left, 9)  # raises unless it runs
    wait_gone([left])


def test_cancelling_ends_the_command(executor, tmp_path):
    pid = tmp_path / "pid"
    future = submit(executor, command, {}, f"sleep 306 & echo $$ $! > {pid}; wait")
    started = wait_until(lambda: pid.exists() and pid.read_text().split(), BOUND, "the command runs")
    assert future.cancel()
    wait_gone([int(p) for p in started])


# -- jobs of their own -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(where: str, new_executor: NewExecutor) -> Iterator[FluxBulkExecutor]:
    """An executor whose small bash apps share workers, and whose others are jobs."""
    with new_executor(where) as executor:
        yield executor


JOB = {"num_tasks": 1}


def ended(executor: FluxBulkExecutor, text: str, spec: dict[str, Any], **kwargs: Any) -> BaseException:
    error = submit(executor, command, spec, text, **kwargs).exception(BOUND)
    assert error is not None
    return error


def test_a_specification_makes_a_bash_app_a_job_without_python(native, tmp_path):
    out = tmp_path / "out"
    text = "cat /proc/$$/comm /proc/$PPID/comm; true"  # bash would become a last command itself
    submit(native, command, JOB, text, stdout=str(out)).result(BOUND)
    # The embedded instance starts its jobs from a process of its own, which is Python.
    parent = Path(sys.executable).resolve().name if native.instance == "local" else "flux-shell"
    itself, above = out.read_text().split()
    assert itself == "bash" and above.startswith(parent[:6])


def test_every_task_of_the_job_runs_the_command(native, tmp_path):
    out = tmp_path / "out"
    spec = {"num_tasks": 2}
    assert (
        submit(native, command, spec, "echo $FLUX_TASK_RANK of $FLUX_JOB_SIZE", stdout=str(out)).result(BOUND)
        == 0
    )
    assert sorted(out.read_text().split("\n")[:2]) == ["0 of 2", "1 of 2"]


def test_a_stream_may_be_a_file_a_rank(native, tmp_path):
    spec = {"num_tasks": 2}
    submit(native, command, spec, "echo $FLUX_TASK_RANK", stdout=str(tmp_path / "out.{{taskid}}")).result(
        BOUND
    )
    assert [(tmp_path / f"out.{rank}").read_text() for rank in (0, 1)] == ["0\n", "1\n"]


def test_the_whole_specification_holds(native, tmp_path):
    out = tmp_path / "out"
    spec = {
        "cwd": str(tmp_path),
        "environment": {"ADDED": "yes", "HOME": None},
        "cores_per_task": 2,
        "shell_options": {"rlimit.nofile": 111},
    }
    submit(native, command, spec, "echo $PWD $ADDED ${HOME-none} $(ulimit -Sn)", stdout=str(out)).result(
        BOUND
    )
    assert out.read_text() == f"{tmp_path} yes none 111\n"


def test_rules_that_clear_the_environment_leave_a_python_app_its_channel(native):
    spec = {"environment": ["-*", "PATH"]}
    assert native.submit(apps.environment, spec, "HOME").result(BOUND) == {"HOME": None}


def test_the_duration_of_the_specification_is_no_walltime(native):
    assert type(ended(native, "sleep 60", {"duration": 0.3})) is JobTimeout
    assert type(ended(native, "sleep 60", {"duration": 0.3}, walltime=50)) is JobTimeout
    assert type(ended(native, "sleep 60", {"duration": 50}, walltime=0.3)) is pe.AppTimeout


def test_what_cannot_be_satisfied_says_why(native):
    error = ended(native, "true", {"num_tasks": 10_000})
    assert type(error) is JobRefused and "bash_app command" in str(error)


def test_a_relative_path_in_a_directory_that_only_flux_knows(native):
    with pytest.raises(ValueError, match=r"stdout: 'out' is relative to '{{tmpdir}}'.*absolute"):
        submit(native, command, {"cwd": "{{tmpdir}}"}, "true", stdout="out").result(BOUND)


@pytest.mark.flux
def test_a_job_has_the_name_of_its_app_and_may_be_cancelled_from_outside(flux_uri, new_executor, tmp_path):
    out = tmp_path / "out"
    with new_executor(flux_uri) as executor:
        future = submit(
            executor, command, JOB, "export FLUX_URI=$PARSL_WORKER_FLUX_URI; "
            "flux jobs -no {name} $FLUX_JOB_ID; flux cancel $FLUX_JOB_ID; sleep 60",
            stdout=str(out),
        )  # fmt: skip
        error = future.exception(BOUND)
    assert type(error) is JobCanceled
    assert out.read_text() == "command\n"


@pytest.mark.flux
def test_a_killed_job_shell_is_not_the_failure_of_the_command(flux_uri, new_executor):
    with new_executor(flux_uri) as executor:
        error = ended(executor, "kill -KILL $PPID", JOB)
    assert type(error) is JobFailed
    assert re.match(
        r"bash_app command \(task 1\), job \S+: killed by SIGKILL: exec: .* flux-shell", str(error)
    )


@pytest.mark.flux
def test_a_killed_script_takes_its_bash_jobs_along(flux_uri, tmp_path):
    source = f"""
        import parsl
        from parsl.config import Config
        from parsl_flux_bulk import FluxBulkExecutor

        @parsl.bash_app
        def app(parsl_resource_specification={{"num_tasks": 1}}):
            return "echo $$ > {tmp_path}/pid; exec sleep 307"

        parsl.load(Config(executors=[FluxBulkExecutor(instance={flux_uri!r})]))
        app().result()
    """
    pid = tmp_path / "pid"
    with script(source, tmp_path) as process:
        started = int(wait_until(lambda: pid.exists() and pid.read_text().strip(), BOUND, "the command runs"))
        process.kill()
    wait_gone([started], BOUND)


# -- how they run ------------------------------------------------------------------------------------


def test_a_worker_does_not_import_parsl_for_a_bash_app(where, new_executor):
    with new_executor(where) as executor:
        for _ in range(4):
            submit(executor, command, {}, "true").result(BOUND)
        assert executor.submit(apps.modules, {}, "parsl", "subprocess").result(BOUND) == []


def test_python_mode_runs_parsls_own_code_in_a_worker(where, new_executor, tmp_path):
    out = tmp_path / "out"
    with new_executor(where, bash_apps="python") as executor:
        for spec in ({}, JOB):
            future = submit(executor, command, spec, "cat /proc/$PPID/comm", stdout=(str(out), "w"))
            assert future.result(BOUND) == 0
            assert out.read_text().startswith("python")
        with pytest.raises(pe.BashExitFailure):
            submit(executor, command, JOB, "exit 1").result(BOUND)


def test_another_value_for_bash_apps_is_refused():
    with pytest.raises(ValueError, match="bash_apps must be 'native' or 'python', not 'bare'"):
        FluxBulkExecutor(bash_apps="bare")


def test_what_a_launcher_put_into_the_environment_does_not_reach_jobs(
    where, new_executor, monkeypatch, tmp_path
):
    for name in ("SLURM_PROCID", "PMI_RANK", "PALS_RANKID", "I_MPI_PMI_LIBRARY", "OMPI_MCA_btl"):
        monkeypatch.setenv(name, "outside")
    out = tmp_path / "out"
    text = "echo ${SLURM_PROCID-} ${PALS_RANKID-} ${I_MPI_PMI_LIBRARY-} ${OMPI_MCA_btl-} ${SLURM_JOB_ID-}"
    with new_executor(where, environment={"SLURM_JOB_ID": "wanted"}) as executor:
        for spec in ({}, JOB, {**JOB, "environment": {"PALS_RANKID": "set"}}):
            submit(executor, command, spec, text, stdout=str(out)).result(BOUND)
    assert out.read_text().splitlines() == ["outside wanted", "outside wanted", "set outside wanted"]


@pytest.mark.parametrize("tasks_per_job", [None, 1])
def test_through_parsl_with_names_of_its_own_choice(where, tasks_per_job, tmp_path):
    executor = FluxBulkExecutor(instance=where, tasks_per_job=tasks_per_job)

    @parsl.bash_app
    def greet(name, stdout=parsl.AUTO_LOGNAME, stderr=parsl.AUTO_LOGNAME):
        return f"echo hello {name}"

    with parsl.load(Config(executors=[executor], run_dir=str(tmp_path), initialize_logging=False)):
        future = greet("world")
        assert future.result(BOUND) == 0
        assert Path(future.stdout).read_text() == "hello world\n"
        assert Path(future.stderr).read_text() == header("echo hello world")


def test_the_examples_of_the_documentation(where, tmp_path):
    (tmp_path / "data.txt").write_text("one\ntwo\n")
    then = "print(failure, failure.__notes__)"
    printed = run_documentation("bash-apps.md", f"instance={where!r}", tmp_path, then)
    assert (tmp_path / "lines.txt").read_text().strip() == "2"
    assert sorted((tmp_path / "ranks.txt").read_text().splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    assert "bash_app count failed with unix exit code 1" in printed and "stderr in count.err" in printed
