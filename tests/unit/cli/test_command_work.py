"""What a command line with templates, inputs and copies becomes: table tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parsl_flux_bulk.bulk.inputs import InputError
from parsl_flux_bulk.cli.bulksubmit.arguments import parse
from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.work import Work
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec import Jobspec


def shown(*arguments: str) -> list[str]:
    return [item.shown for item in Work(parse(list(arguments))).items(lambda descriptor: None)]


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        (["echo", "{}", ":::", "a", "b"], ["echo a", "echo b"]),
        (["--", "echo", "-n", "{}", ":::", "a"], ["echo -n a"]),
        ([":::", "a", "b"], ["a", "b"]),
        (["--", "no-such-program here"], ["'no-such-program here'"]),
        (["echo", "{1}{0}", ":::", "1", "2", ":::", "3", "4"], ["echo 31", "echo 41", "echo 32", "echo 42"]),
        (["echo", "{}-{}", ":::", "1", ":::", "2"], ["echo 1-2"]),
        (["echo", "{}", "{}", ":::", "1", ":::", "2"], ["echo 1 1"]),
        (["echo", "{0}{1}", ":::", "1", "2", "3", ":::+", "a", "b"], ["echo 1a", "echo 2b", "echo 3a"]),
        (["echo", "{.%}", "{./}", "{.//}", "{./%}", ":::", "/x/y.dat"], ["echo /x/y y.dat /x y"]),
        (["echo", "{1./%}", ":::", "a", ":::", "b/c.d"], ["echo c"]),
        (["echo", "{seq}", "{seq1}", "{seq:03d}", ":::", "a", "b"], ["echo 0 1 000", "echo 1 2 001"]),
        (["--cc", "1-2,5", "--", "echo", "{cc}"], ["echo 1", "echo 2", "echo 5"]),
        (["--bcc", "0", "--", "echo", "{cc:02d}"], ["echo 00"]),
        (["--copies", "2", "echo", "{}{cc}", ":::", "a", "b"], ["echo a0", "echo a1", "echo b0", "echo b1"]),
        (["--cc={}", "echo", "{cc}", ":::", "0-1", "7"], ["echo 0", "echo 1", "echo 7"]),
        (["--define", "w=x.split()", "echo", "{.w}", ":::", "a b"], ["echo a b"]),
        (["-n", "{.d}", "--define", "d=2*int(x)", "true", ":::", "1", "2"], ["-n2 true", "-n4 true"]),
        (["--job-name={}", "--env=A={}", "true", ":::", "x"], ["--env=A=x --job-name=x true"]),
        (["--output={}.{{id}}", "echo", "{{id}}", "{}", ":::", "a"], ["'--output=a.{{id}}' echo '{{id}}' a"]),
        (
            ["sh", "-c", "f() { echo ${HOME}; }; {1..3} {}", ":::", "a"],
            ["sh -c 'f() { echo ${HOME}; }; {1..3} a'"],
        ),
        (["--literal", "--", "find", "-exec", "echo", "{}", ";"], ["find -exec echo '{}' ';'"]),
    ],
)
def test_commands(arguments: list[str], commands: list[str]) -> None:
    assert shown(*arguments) == commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "echo hello"], "'echo hello' is not a program, and no shell splits it"),
        (["echo {}", ":::", "a"], "leave its quotes away, or give sh -c 'echo {}'"),
        (["echo", "{x}", ":::", "a"], "'{x}' in the command is not a template: there are {}"),
        (["echo", "{.x}", ":::", "a"], "'{.x}' in the command is not a template"),
        (["--job-name={x}", "echo", "{}", ":::", "a"], "'{x}' in --job-name is not a template"),
        (["echo", "{1}", ":::", "a"], "needs input 1, and there is 1 input list"),
        (["echo", "{}{}", ":::", "a"], "needs input 1, and there is 1 input list"),
        (["echo", "{}{0}", ":::", "a"], "mixes {} with numbered templates"),
        (["echo", "{0}{}", ":::", "a"], "mixes {} with numbered templates"),
        (["echo", "{:>3}", ":::", "a"], "only {seq}, {seq1} and {cc} take a format"),
        (["echo", "{cc}", ":::", "a"], "has {cc}, which needs --cc or --copies"),
        (["--", "echo", "{cc}"], "has {cc}, which needs --cc or --copies"),
        (["echo", ":::", "a"], "the inputs are used nowhere: put {}"),
        (["--cc", "x", "--", "true"], "'x' is not a set of numbers"),
        (["--cc", "3-1", "--", "true"], "'3-1' is not a set of numbers"),
        (["--cc", "1,1", "--", "true"], "has 1 twice"),
        (["--define", "x", "--", "true"], "--define must be NAME=CODE"),
        (["--define", "x=(", "--", "true"], "is not a Python expression"),
        (["echo", "{}", "::::", "absent"], "cannot read 'absent': No such file"),
        (["--output", "x", "echo", "{}", ":::", "a", "b"], "--output 'x' is one file for all jobs"),
        (["--error", "x", "--copies", "2", "--", "true"], "--error 'x' is one file for all jobs"),
        (["--flags", "debug", "--", "true"], "--flags: 'debug' cannot be set here"),
        (["-t", "x", "--", "true"], "--time-limit must be seconds"),
        (["-n", "x", "--", "true"], "--ntasks must be an integer of at least 1, not 'x'"),
        (["--signal", "NONE@5", "--", "true"], "'NONE' is not a signal"),
        (["--begin-time", "3pm", "--", "true"], "--begin-time must be a time from now"),
        (["--commands", "absent"], "cannot read 'absent' (--commands)"),
        (["--cores=2", "-n2", "--", "true"], "--cores and --ntasks exclude each other"),
        (["--tasks-per-node=2", "--", "true"], "--tasks-per-node needs --nodes or --cores"),
        (["--gpus-per-node=2", "--", "true"], "--gpus-per-node needs --nodes"),
        (["--cores=2", "-x", "--", "true"], "--exclusive needs --nodes"),
        (["--cores=3", "-N2", "--", "true"], "--cores 3 must be a multiple of --nodes 2"),
        (["--cores=2", "--tasks-per-node=1", "--tasks-per-core=1", "true", ":::", "{seq}"], "not both"),
        (["--rlimit=files", "--", "true"], "--rlimit: 'files' is not a limit; there are "),
        (["--rlimit=core=x", "--", "true"], "--rlimit: core must be a number or 'unlimited', not 'x'"),
        (["--env==x", "--", "true"], "--env: ['=x'] '=x' has no name before '='"),
        (["--queue=", "--", "true"], "--queue: '' must be a string that is not empty"),
        (["-n1", "-N2", "--", "true"], "--nodes: 2 must not be more than the number of tasks, 1"),
        (["-x", "--", "true"], "--exclusive: True needs --nodes: only whole nodes can be exclusive"),
        (["--jobs", "."], "is a directory"),
        (["--sep=", "echo", "{}", "::::", "/dev/null"], "--sep must not be empty"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises((UnusableInput, InputError)) as caught:
        Work(parse(arguments))
    assert message in str(caught.value)
    assert "Valid keys" not in str(caught.value)


def test_one_file_may_be_appended_to_or_discarded() -> None:
    for option in (
        ["--output", "x", "--open-mode", "append"],
        ["--output", "/dev/null"],
        ["--output", "x{{id}}"],
    ):
        assert len(shown(*option, "echo", "{}", ":::", "a", "b")) == 2


def test_inputs_from_files(tmp_path: Path) -> None:
    lines, words = tmp_path / "lines", tmp_path / "words"
    lines.write_bytes(b"\xef\xbb\xbfa b\r\n\nc\n")
    words.write_text("1 2\n3")
    assert shown("echo", "{}", "::::", str(lines)) == ["echo 'a b'", "echo c"]
    assert shown("--sep=none", "echo", "{}", "::::", str(words)) == ["echo 1", "echo 2", "echo 3"]
    assert shown("--sep= ", "echo", "{}", "::::", str(words)) == ["echo 1", "echo '2\n3'"]
    linked = ["echo", "{0}{1}", ":::", "x", "y", "::::+", str(words)]
    assert shown("--sep=none", *linked) == ["echo x1", "echo y2"]


def test_a_bad_input_fails_alone() -> None:
    items = list(Work(parse(["-n", "{}", "true", ":::", "2", "x"])).items(lambda descriptor: None))
    assert items[0].request().jobspec.count_resources()[0]["slot"] == 2
    with pytest.raises(JobspecError, match="--ntasks must be an integer"):
        items[1].request()


def jobspec_of(*arguments: str) -> Jobspec:
    (item,) = Work(parse(list(arguments))).items(lambda descriptor: None)
    return item.request().jobspec


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["-t", "5"], "duration", 300.0),
        (["-t", "5s"], "duration", 5.0),
        (["--duration", "5"], "duration", 5.0),
        (["--timeout", "5"], "duration", 5.0),
        (["--job-name", "x"], "job.name", "x"),
        (["-q", "x", "-B", "y"], "queue", "x"),
        (["-B", "y"], "bank", "y"),
        (["-o", "mpi=none"], "shell.options.mpi", "none"),
        (["-o", "verbose"], "shell.options.verbose", 1),
        (["-o", "a.b=[1]"], "shell.options.a.b", [1]),
        (["-S", "project=x"], "project", "x"),
        (["--dependency", "afterok:1"], "dependencies", [{"scheme": "afterok", "value": "1"}]),
        (["--requires", "host:a"], "constraints", {"hostlist": ["a"]}),
        (["--input", "i"], "shell.options.input.stdin.path", "i"),
        (["--output", "o", "-l"], "shell.options.output.stdout.label", True),
        (["--output", "o", "--open-mode", "append"], "shell.options.output.mode", "append"),
        (["-u"], "shell.options.output.stdout.buffer.type", "none"),
        (["--taskmap", "cyclic:2"], "shell.options.taskmap", {"scheme": "cyclic", "value": "2"}),
        (["--signal", "USR2@5s"], "shell.options.signal", {"signum": 12, "timeleft": 5.0}),
        (["--signal", "@1m"], "shell.options.signal", {"signum": 10, "timeleft": 60.0}),
        (["--cwd", "/x"], "cwd", "/x"),
        (["--env=-*", "--env=A=b"], "environment", {"A": "b"}),
        (["--env-remove=*", "--env=A=b"], "environment", {"A": "b"}),
        (["--env-remove=*", "--cc=3"], "environment", {"FLUX_JOB_CC": "3"}),
        (["--env-remove=*", "--bcc=3"], "environment", {}),
    ],
)
def test_options_of_flux_submit(arguments: list[str], path: str, value: object) -> None:
    found: object = jobspec_of(*arguments, "--", "true").system
    for key in path.split("."):
        assert isinstance(found, dict)
        found = found[key]
    assert found == value


def test_lines_of_commands_and_of_json(tmp_path: Path) -> None:
    commands, jobs = tmp_path / "commands", tmp_path / "jobs"
    commands.write_text("# comment\n\necho a | wc\n  ls {x}\n")
    items = list(Work(parse(["-n2", "--job-name={seq}", "--commands", str(commands)])).items(lambda fd: None))
    assert [item.request().jobspec.data["tasks"][0]["command"][2] for item in items] == [
        "echo a | wc",
        "  ls {x}",
    ]
    assert [item.request().jobspec.system["job"]["name"] for item in items] == ["0", "1"]
    jobspec = jobspec_of("--", "true").data
    lines = [
        {"command": ["a", "b"], "num_tasks": 2, "stdout": "o"},
        {"command": "a|b", "label": "x"},
        jobspec,
    ]
    jobs.write_text(
        "\n".join(map(json.dumps, lines)) + "\nnonsense\n[]\n{}\n" + '{"command": ["a"], "tasks_": 1}'
    )
    items = list(Work(parse(["--jobs", str(jobs)])).items(lambda fd: None))
    assert [item.label for item in items[:3]] == ["a b #1", "x", "line 3"]
    assert items[0].request().jobspec.count_resources()[0]["slot"] == 2
    assert items[2].request().jobspec.data == jobspec
    for item, message in zip(
        items[3:], ("not JSON", "JSON object", "the key 'command'", "tasks_"), strict=True
    ):
        with pytest.raises(JobspecError, match=message):
            item.request()


def test_a_stream_is_read_as_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"{number}\n" for number in range(200_000)))
    work = Work(parse(["echo", "{}", "::::", str(path)]))
    assert work.total is None
    items = work.items(lambda descriptor: None)
    assert [next(items).shown for _ in range(2)] == ["echo 0", "echo 1"]
