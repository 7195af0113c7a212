"""`bulksubmit` with broken streams, full disks and odd names: words instead of tracebacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from test_bulksubmit import BOUND, COMMAND, Where, bulksubmit, in_tmp_path, records, where, write_job

from parsl_flux_bulk.jobspec import build
from parsl_flux_bulk.jobspec.resources import Resources

__all__ = ["in_tmp_path", "where"]

full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


def by_shell(where: Where, arguments: str, redirections: str) -> subprocess.CompletedProcess[str]:
    """Run `bulksubmit` with the redirections of a shell; whatever is redirected is not in the result."""
    line = f'"$@" {arguments} {redirections}'
    run = subprocess.run(
        ["bash", "-c", line, "bash", *COMMAND, *where], capture_output=True, text=True, timeout=BOUND
    )
    assert "Traceback" not in run.stderr and "Exception ignored" not in run.stderr, run.stderr
    return run


COPIES = "--json records --copies 3 -- sh -c ': > ran-$$'"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_hindrance(where: Where, closed: str) -> None:
    assert by_shell(where, COPIES, closed).returncode == 0
    assert len(list(Path().glob("ran-*"))) == len(Path("records").read_text().splitlines()) == 3


def test_failures_are_counted_without_stderr(where: Where) -> None:
    assert by_shell(where, "--copies 2 -- false", "2>&-").returncode == 1


def test_paths_from_a_closed_stdin() -> None:
    run = by_shell(["--local"], "-", "<&-")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "bulksubmit: '-' reads paths from stdin, but stdin is closed\n"


@full_disk
def test_a_full_disk_under_the_records(where: Where) -> None:
    run = by_shell(where, "--json /dev/full --copies 3 -- sh -c ': > ran-$$'", "")
    assert run.returncode == 1
    assert run.stderr == (
        "bulksubmit: cannot write '/dev/full' (--json): No space left on device; "
        "the jobs run on, without records from here on\n"
    )
    assert "bulksubmit: Ran 3 jobs" in run.stdout
    assert len(list(Path().glob("ran-*"))) == 3


@full_disk
def test_a_full_disk_under_stdout(where: Where) -> None:
    run = by_shell(where, COPIES, "> /dev/full")
    assert run.returncode == 1
    first, second = run.stderr.splitlines()
    assert first == "bulksubmit: cannot write to standard output: No space left on device"
    assert second.startswith("bulksubmit: Ran 3 jobs in ")
    assert len(records_of_copies()) == 3


@full_disk
def test_a_full_disk_under_stderr(where: Where) -> None:
    run = by_shell(where, "--copies 3 -- false", "2> /dev/full")
    assert run.returncode == 1
    assert "bulksubmit: Ran 3 jobs" in run.stdout


def test_a_reader_that_leaves_after_a_line() -> None:
    # The first job ends once the reader has left; then the command has more to say.
    job = "mkdir first 2>/dev/null || exec sleep 600; until [ -e left ]; do sleep 0.05; done"
    reader = "{ head -n 1; exec <&-; touch left; }"
    run = by_shell(["--local"], f"--copies 4 -- sh -c '{job}'", f"| {reader}; exit ${{PIPESTATUS[0]}}")
    assert run.stdout == "bulksubmit: Starting...\n"
    assert run.returncode == 128 + signal.SIGPIPE
    assert run.stderr == "bulksubmit: nobody reads standard output any more: canceled the outstanding jobs\n"


def records_of_copies() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("records").read_text().splitlines()]


def test_odd_names_stay_on_their_lines(where: Where) -> None:
    names = [b"new\nline.json", b"not-utf8-\xff.json", b"escape-\x1b[1m.json", "umlaut-ü.json".encode()]
    os.mkdir("jobs")
    for number, name in enumerate(names, start=1):
        Path(os.fsdecode(b"jobs/" + name)).write_text("[" * number)  # a cause for each
    environment = {**os.environ, "PYTHONIOENCODING": "", "LC_ALL": "C.UTF-8"}
    run = subprocess.run(
        [*COMMAND, *where, "--json", "records", "jobs"], capture_output=True, timeout=BOUND, env=environment
    )
    assert run.returncode == 1
    said = run.stderr.decode().partition("bulksubmit: 4 of")[2].splitlines()
    assert [line.partition(": not a valid")[0] for line in said[1:]] == [
        r"  jobs/escape-\x1b[1m.json",
        r"  jobs/new\nline.json",
        r"  jobs/not-utf8-\udcff.json",
        "  jobs/umlaut-ü.json",
    ]
    assert {os.fsencode(name) for name in records("records")} == {b"jobs/" + name for name in names}


def test_names_from_stdin_need_not_be_utf8(where: Where) -> None:
    write_job(os.fsdecode(b"jobs/\xff.json"), "touch", "ran")
    run = subprocess.run(
        [*COMMAND, *where, "-"], input=b"jobs/\xff.json\n", capture_output=True, timeout=BOUND
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert Path("ran").exists()


def test_a_byte_order_mark_is_skipped(where: Where) -> None:
    spec = build(Resources(), ["touch", "ran"], environment=os.environ, cwd=os.getcwd()).text
    Path("job.json").write_text(spec, encoding="utf-8-sig")
    run = bulksubmit(*where, "-", stdin="\ufeffjob.json\r\n")
    assert (run.returncode, run.stderr) == (0, "")
    assert Path("ran").exists()


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"a.json\0b.json\0", "a null character on stdin: '-' reads one path from each line"),
        (b"x" * 100_000, "a line of stdin is longer than any path: 'xxx"),
    ],
)
def test_unusable_lists(stdin: bytes, message: str) -> None:
    run = subprocess.run([*COMMAND, "--local", "-"], input=stdin, capture_output=True, timeout=BOUND)
    assert (run.returncode, run.stdout) == (2, b"")
    assert run.stderr.decode().startswith(f"bulksubmit: {message}")


def test_what_is_not_a_regular_file(where: Where) -> None:
    os.mkfifo("fifo.json")
    os.mkdir("directory.json")
    os.mkdir("jobs")
    os.rename("directory.json", "jobs/directory.json")
    run = bulksubmit(*where, "fifo.json", "/dev/null", "jobs")
    assert run.returncode == 1
    for said in (
        "fifo.json: cannot be read: a FIFO; a jobspec must be in a regular file",
        "/dev/null: cannot be read: a device; a jobspec must",
        "jobs/directory.json: cannot be read: a directory; a jobspec must",
    ):
        assert said in run.stderr


def test_a_directory_that_is_gone() -> None:
    line = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    run = subprocess.run(
        ["bash", "-c", line, "bash", *COMMAND, "--local", "--", "true"],
        capture_output=True, text=True, timeout=BOUND,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("bulksubmit: the current directory cannot be used: No such file")


def test_copies_know_their_number(where: Where) -> None:
    for options in ([], ["--env", "OTHER=x"], ["--env=-*", "--env=PATH"]):
        shell = ["sh", "-c", "echo $FLUX_JOB_CC >> numbers"]
        run = bulksubmit(*where, "--copies", "3", *options, "--", *shell)
        assert (run.returncode, run.stderr) == (0, "")
        assert sorted(Path("numbers").read_text().split()) == ["0", "1", "2"]
        Path("numbers").unlink()


def test_one_command_keeps_the_number_that_it_inherits() -> None:
    run = bulksubmit("--local", "--", "sh", "-c", "echo $FLUX_JOB_CC > number", FLUX_JOB_CC="7")
    assert run.returncode == 0
    assert Path("number").read_text() == "7\n"


def test_bindings_of_another_version(tmp_path: Path) -> None:
    """The wheel of flux-python 0.80 lacks a module; here, it lacks all but one."""
    for name, text in {
        "lib/flux/__init__.py": "",
        "lib/flux_python-0.80.0.dist-info/METADATA": "Name: flux-python\nVersion: 0.80.0\n",
        "bin/flux": "#!/bin/sh\necho 'commands:    \t\t0.88.0'\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "bin/flux").chmod(0o755)
    run = bulksubmit(
        *("--uri", "local:///x", "--", "true"),
        PYTHONPATH=f"{tmp_path}/lib:{os.environ.get('PYTHONPATH', '')}",
        PATH=f"{tmp_path}/bin:{os.environ['PATH']}",
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "bulksubmit: Flux's Python bindings (flux-python 0.80.0) cannot be imported beside flux-core 0.88.0: "
        "No module named 'flux.constants'. Install those of the same version: "
        "pip install flux-python==0.88.0 ply pyyaml\n"
    )


def test_a_FLUX_URI_that_is_not_a_uri() -> None:
    run = bulksubmit("--", "true", FLUX_URI="garbage")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("bulksubmit: FLUX_URI='garbage' is not a URI such as ")


@pytest.mark.flux
@pytest.mark.parametrize("name", ["missing", "x" * 100])
def test_a_TMPDIR_that_no_broker_can_use(name: str, tmp_path: Path) -> None:
    if name != "missing":
        (tmp_path / name).mkdir()
    run = bulksubmit("--", "true", FLUX_URI="", TMPDIR=str(tmp_path / name))
    assert run.returncode == 0
    assert (
        f"TMPDIR={tmp_path / name} not used by the broker: missing, not writable, or too long" in run.stderr
    )
