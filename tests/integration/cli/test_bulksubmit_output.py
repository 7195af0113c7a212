"""Where the output of jobs goes: to files, to the terminal, or nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
from test_bulksubmit import BOUND, COMMAND, Where, bulksubmit, in_tmp_path, on_a_terminal, where, write_job

__all__ = ["in_tmp_path", "where"]

HINT = "bulksubmit: what the jobs print is lost when this run ends: "


def test_a_file_for_each_job(where: Where) -> None:
    run = bulksubmit(
        *where, "--output-dir", "a/b", "sh", "-c", "echo out {0}; echo err {0} >&2", ":::", "x", "y"
    )
    assert (run.returncode, run.stderr) == (0, "")
    found = {path.name: sorted(path.read_text().split("\n")) for path in Path("a/b").glob("*.out")}
    assert found == {
        "1-sh_-c_echo_out_x_echo_err_x_2.out": ["", "err x", "out x"],
        "2-sh_-c_echo_out_y_echo_err_y_2.out": ["", "err y", "out y"],
    }
    written = [json.loads(line) for line in Path("a/b/records.jsonl").read_text().splitlines()]
    assert [record["status"] for record in written] == ["completed"] * 2


def test_jobspecs_and_streams_in_a_directory(where: Where) -> None:
    write_job("jobs/one.json", "echo", "one")
    spec = json.loads(Path("jobs/one.json").read_text())
    own = {"shell": {"options": {"output": {"stdout": {"type": "file", "path": "own"}}}}}
    spec["attributes"]["system"].update(own)
    Path("jobs/two.json").write_text(json.dumps(spec))
    assert bulksubmit(*where, "--output-dir=out", "--json", "records", "jobs").returncode == 0
    assert {path.name for path in Path("out").iterdir()} == {"1-jobs_one.json.out"}
    assert Path("own").read_text() == Path("out/1-jobs_one.json.out").read_text() == "one\n"
    run = bulksubmit(*where, "--output-dir=lines", "--commands", "-", stdin="echo a\necho " + "b" * 50)
    assert run.returncode == 0, run.stderr
    short, cut = sorted(Path("lines").glob("*.out"))
    assert (short.name, short.read_text()) == ("1-echo_a.out", "a\n")
    assert cut.name.startswith("2-echo_bbb") and cut.read_text() == "b" * 50 + "\n"


@pytest.mark.parametrize(
    ("output", "options", "status"),
    [
        ({"stdout": {"type": "file", "path": "all"}}, [], 1),
        ({"stderr": {"type": "file", "path": "./all"}}, [], 1),
        ({"stdout": {"type": "file", "path": "all"}}, ["--open-mode=append"], 0),
        ({"stdout": {"type": "file", "path": "all"}, "mode": "append"}, [], 0),
        ({"stdout": {"type": "file", "path": "{{id}}"}}, [], 0),
        ({"stdout": {"type": "file", "path": "/dev/null"}}, [], 0),
    ],
    ids=str,
)
def test_jobspecs_that_name_one_file(output: dict[str, object], options: list[str], status: int) -> None:
    for name in ("a", "b"):
        write_job(f"jobs/{name}.json", "sh", "-c", f"echo {name}; echo {name} >&2")
        spec = json.loads(Path(f"jobs/{name}.json").read_text())
        spec["attributes"]["system"]["shell"] = {"options": {"output": output}}
        Path(f"jobs/{name}.json").write_text(json.dumps(spec))
    run = bulksubmit("--local", *options, "jobs")
    assert run.returncode == status, run.stderr
    message = "jobs/b.json: not a valid jobspec: its output would overwrite that of jobs/a.json"
    assert (message in run.stderr) == bool(status)
    if Path("all").exists():
        assert set(Path("all").read_text().split()) == ({"a"} if status else {"a", "b"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-dir", "{seq}", "--", "true"], "--output-dir '{seq}' takes no template; --output does"),
        (
            ["--output-dir", "file/x", "--", "true"],
            "cannot make the directory 'file/x' (--output-dir)",
        ),
        (["--output-dir=x", "--output=y", "--", "true"], "give --output or --output-dir, not both"),
        (["--watch", "--output=y", "--", "true"], "give --output or --watch, not both"),
        (["--watch", "--output-dir=y", "--", "true"], "--watch prints what the instance keeps"),
        (["--commands", "file", "--output=y"], "--output 'y' is one file for all jobs"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    Path("file").write_text("true\n")
    run = bulksubmit("--local", *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr


def test_output_that_will_be_lost() -> None:
    run = bulksubmit("--local", "--copies", "9", "--", "echo", "x")
    assert run.returncode == 0
    assert run.stderr.startswith(HINT) and run.stderr.count("\n") == 1
    for silent in (["--", "true"], ["--output-dir=out", "--", "echo", "x"], ["--watch", "--", "echo", "x"]):
        assert bulksubmit("--local", *silent).stderr == ""


@pytest.mark.flux
def test_output_that_the_instance_keeps(flux_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bulksubmit("--uri", flux_uri, "--copies", "3", "--", "echo", "x")
    assert (run.returncode, run.stderr) == (0, "")
    monkeypatch.delenv("FLUX_URI", raising=False)
    run = bulksubmit("--copies", "3", "--", "echo", "x")
    assert run.returncode == 0
    assert run.stderr.startswith(HINT)


def test_watch_shows_lines_while_the_job_runs(where: Where) -> None:
    os.mkfifo("go")
    shell = "echo one; echo two >&2; printf thr; cat go; echo ee; printf four"
    with subprocess.Popen(
        [*COMMAND, *where, "--watch", "--", "sh", "-c", shell],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        helpers.wait_until(lambda: process.stdout.readline() == "one\n", BOUND)
        assert process.stderr.readline() == "two\n"
        Path("go").write_text("")
        out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("three\nfour\nbulksubmit: First job finished")


@pytest.mark.flux
def test_watch_shows_what_the_instance_keeps_of_too_much(flux_uri: str) -> None:
    shell = "for i in $(seq 1000); do echo $i; done"
    run = bulksubmit("--uri", flux_uri, "-o", "output.limit=1K", "--watch", "--", "sh", "-c", shell)
    assert run.returncode == 0
    shown = [line for line in run.stdout.splitlines() if line.isdecimal()]
    assert shown == [str(number) for number in range(1, len(shown) + 1)] and 0 < len(shown) < 1000
    assert "the job wrote more than the instance keeps (stdout: " in run.stderr


def peak_memory(*arguments: str) -> tuple[int, int]:
    """Run `bulksubmit`; return the bytes that it printed, and its largest resident size."""
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout
        printed = 0
        while chunk := process.stdout.read(1 << 16):
            printed += len(chunk)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return printed, used.ru_maxrss << 10


@pytest.mark.parametrize(
    ("kind", "megabytes"),
    [
        ("local", 60),
        pytest.param("packed", 60, marks=pytest.mark.flux),
        pytest.param("flux", 20, marks=pytest.mark.flux),
    ],
)
def test_watch_holds_little_of_what_a_job_prints(
    request: pytest.FixtureRequest, kind: str, megabytes: int
) -> None:
    where = ["--local"] if kind == "local" else ["--uri", request.getfixturevalue("flux_uri")]
    options = {"local": [], "packed": ["--packed"], "flux": ["-o", "output.limit=1G"]}[kind]
    job = [sys.executable, "-c", "import sys\nfor n in range(int(sys.argv[1])): print(99 * 'x')"]
    _, idle = peak_memory(*where, *options, "--watch", "--", *job, "1")
    printed, busy = peak_memory(*where, *options, "--watch", "--", *job, str(megabytes * 10_000))
    assert printed > megabytes * 1_000_000
    assert busy - idle < printed / 2


def test_watch_labels_lines_on_a_terminal(where: Where) -> None:
    shown = on_a_terminal(*where, "--watch", "sh", "-c", "echo {}; echo [e] >&2", ":::", "a", "b")
    for number, name in enumerate("ab", start=1):
        label = f"sh -c echo {name}; echo [e] >&2 #{number}: "
        assert f"{label}{name}\r\n".encode() in shown and f"{label}[e]\r\n".encode() in shown
