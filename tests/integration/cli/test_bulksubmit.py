"""The `bulksubmit` command, as a person runs it, on every instance."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import helpers
import pytest

import parsl_flux_bulk
from parsl_flux_bulk.bulk.submitter import BulkSubmitter
from parsl_flux_bulk.cli.bulksubmit.progress import TERMINAL_INTERVAL
from parsl_flux_bulk.jobspec import build
from parsl_flux_bulk.jobspec.resources import Resources

BOUND = 60.0
COMMAND = [sys.executable, "-m", "parsl_flux_bulk"]

Where = list[str]


@pytest.fixture(params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def where(request: pytest.FixtureRequest) -> Where:
    """Options that say where the jobs run."""
    if request.param == "local":
        return ["--local"]
    return ["--uri", request.getfixturevalue("flux_uri")]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(parsl_flux_bulk.__file__).parent
    if (package.parent / "setup.cfg").exists():
        # Not installed: the command runs elsewhere, and must find the package that is tested here.
        # All of sys.path would be too much: `flux` may run another version of Python.
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.chdir(tmp_path)


def bulksubmit(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=BOUND,
        env={**os.environ, **environment},
    )


def write_job(name: str, *command: str, **resources: object) -> None:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    specification = Resources.from_specification(resources)
    path.write_text(build(specification, command, environment=os.environ, cwd=os.getcwd()).text)


def records(name: str) -> dict[str, dict[str, object]]:
    """The JSON records, by file."""
    found = [json.loads(line) for line in Path(name).read_text().splitlines()]
    return {record["file"]: record for record in found}


# -- what it prints ----------------------------------------------------------------------------------

SAID = r"""bulksubmit: Starting\.\.\.
bulksubmit: submitted 20 jobs in \d+\.\d\ds\. \d+\.\d\djob/s
bulksubmit: First job finished in about \d+\.\d\d\ds
\|█{58}\| 100\.0% \(\d+\.\d job/s\)
bulksubmit: Ran 20 jobs in \d+\.\ds\. \d+\.\d job/s
"""


def test_a_run_without_failures(where: Where) -> None:
    run = bulksubmit(*where, "--copies", "20", "--", "sleep", "0")
    assert re.fullmatch(SAID, run.stdout), run.stdout
    assert (run.returncode, run.stderr) == (0, "")


def on_a_terminal(*arguments: str) -> bytes:
    """Run `bulksubmit` on a terminal, with success; return what that shows."""
    reading, writing = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    run = subprocess.Popen([*COMMAND, *arguments], stdout=writing, stderr=writing, env=environment)
    os.close(writing)
    shown = b""
    try:
        while chunk := os.read(reading, 4096):
            shown += chunk
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(reading)
    assert run.wait(BOUND) == 0
    return shown


def test_a_terminal_has_a_live_bar_that_ends_as_the_plain_one(where: Where) -> None:
    shown = on_a_terminal(*where, "--copies", "2", "--", "sleep", str(2 * TERMINAL_INTERVAL))
    # Drawn at the first end, so long after the start, and over itself at the end.
    assert shown.count(b"\r\x1b[2K|") > 1
    lines = re.sub(r"\x1b\[\??\d*[a-zA-Z]", "", shown.decode()).splitlines()
    assert re.fullmatch(r"\|█{58}\| 100\.0% \(\d+\.\d job/s\)", lines[-2])
    assert lines[-1].startswith("bulksubmit: Ran 2 jobs in ")


def test_it_says_where_if_asked(where: Where) -> None:
    run = bulksubmit(*where, "--verbose", "--", "true")
    assert "bulksubmit: running jobs on " in run.stderr


# -- what it runs ------------------------------------------------------------------------------------


def test_every_job_of_a_directory_runs_once(where: Where) -> None:
    for number in range(12):
        write_job(f"jobs/{number}.json", "sh", "-c", f"echo {number} >> ran")
    assert bulksubmit(*where, "jobs/").returncode == 0
    assert sorted(map(int, Path("ran").read_text().split())) == list(range(12))


def test_paths_come_from_stdin(where: Where) -> None:
    for number in range(3):
        write_job(f"jobs/{number}.json", "sh", "-c", f"echo {number} >> ran")
    run = bulksubmit(*where, "-", stdin="jobs/2.json\njobs/absent.json\njobs/0.json\n")
    assert sorted(Path("ran").read_text().split()) == ["0", "2"]
    assert run.returncode == 1
    assert "jobs/absent.json: cannot be read: No such file or directory" in run.stderr


def test_a_file_given_twice_runs_once(where: Where) -> None:
    write_job("job.json", "sh", "-c", "echo ran >> ran")
    run = bulksubmit(*where, "job.json", "./job.json")
    assert Path("ran").read_text() == "ran\n"
    assert (run.returncode, run.stderr) == (0, "bulksubmit: 1 file(s) given more than once run once\n")


def test_options_of_a_command(where: Where) -> None:
    shell = "echo $FLUX_TASK_RANK $OURS $PWD; echo err >&2"
    run = bulksubmit(
        *where,
        *("--copies", "2", "--ntasks", "2", "-c", "1", "--duration", "30s", "--cwd", "/"),
        *("--env", "OURS=ours", "--output", f"{os.getcwd()}/{{{{id}}}}.out", "--error", "/dev/null"),
        *("--", "sh", "-c", shell),
    )
    assert run.returncode == 0, run.stderr
    outputs = list(Path().glob("*.out"))
    assert len(outputs) == 2
    for output in outputs:
        assert sorted(output.read_text().splitlines()) == ["0 ours /", "1 ours /"]


@pytest.mark.flux
def test_a_jobspec_of_flux_submit_runs_unchanged(where: Where) -> None:
    command = ["flux", "submit", "--dry-run", "-n2", "--output=out.{{id}}", "sh", "-c", "echo $FLUX_JOB_SIZE"]
    Path("job.json").write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert bulksubmit(*where, "--json", "records", "job.json").returncode == 0
    job = records("records")["job.json"]["id"]
    assert Path(f"out.{job}").read_text() == "2\n2\n"


def test_the_number_of_active_jobs_is_bounded(where: Where) -> None:
    run = bulksubmit(
        *where, "--max-active", "1", "--copies", "5", "--", "sh", "-c", "mkdir x && sleep 0.05 && rmdir x"
    )
    assert run.returncode == 0, run.stderr


# -- what goes wrong ---------------------------------------------------------------------------------


def test_each_failure_is_reported_rightly_and_the_others_run(where: Where) -> None:
    for number in range(6):
        write_job(f"jobs/good-{number}.json", "sh", "-c", "echo ran >> ran")
    Path("jobs/garbage.json").write_text('{"resources": [}')
    write_job("jobs/huge.json", "true", num_tasks=10_000)
    write_job("jobs/three.json", "sh", "-c", "echo the last line >&2; exit 3")
    write_job("jobs/killed.json", "sh", "-c", "kill -KILL $$")

    run = bulksubmit(*where, "--json", "records", "jobs")

    assert run.returncode == 1
    assert Path("ran").read_text() == "ran\n" * 6
    assert "bulksubmit: submitted 9 jobs" in run.stdout and "bulksubmit: Ran 9 jobs" in run.stdout
    said = run.stderr.splitlines()
    said = said[said.index("bulksubmit: 4 of 10 jobs failed:") :]
    told = {line.split()[0].rstrip(":"): line for line in said[1:] if line.startswith("  jobs/")}
    assert set(told) == {"jobs/garbage.json", "jobs/huge.json", "jobs/three.json", "jobs/killed.json"}
    assert "not a valid jobspec: line 1 column 16: not JSON" in told["jobs/garbage.json"]
    assert "refused: " in told["jobs/huge.json"] and "10000" in told["jobs/huge.json"]
    assert re.search(r"\(job \S+\): exit status 3$", told["jobs/three.json"])
    assert said[said.index(told["jobs/three.json"]) + 1] == "      | the last line"
    assert re.search(r"\(job \S+\): killed by SIGKILL$", told["jobs/killed.json"])

    record = records("records")
    assert len(record) == 10
    good, three, killed = record["jobs/good-0.json"], record["jobs/three.json"], record["jobs/killed.json"]
    assert good["status"] == "completed" and good["exit_code"] == 0
    assert good["submitted"] <= good["finished"]  # type: ignore[operator]
    assert (three["status"], three["exit_code"], three["signal"]) == ("failed", 3, None)
    assert (killed["status"], killed["exit_code"], killed["signal"]) == ("failed", None, 9)
    assert record["jobs/huge.json"]["exception"] in ("submit", "alloc")
    assert (record["jobs/garbage.json"]["status"], record["jobs/garbage.json"]["id"]) == ("invalid", None)


def test_strict_starts_nothing(where: Where) -> None:
    write_job("good.json", "touch", "ran")
    Path("bad.json").write_text("[]")
    Path("worse.json").write_text("")
    run = bulksubmit(*where, "--strict", "good.json", "bad.json", "worse.json")
    assert (run.returncode, run.stdout) == (2, "")
    assert "nothing was started: 2 file(s) are unusable" in run.stderr
    assert "  bad.json: " in run.stderr and "  worse.json: " in run.stderr
    assert not Path("ran").exists()


def test_only_the_first_causes_are_listed() -> None:
    run = bulksubmit("--local", "sh", "-c", "exit {}", ":::", *map(str, range(1, 31)))
    assert run.returncode == 1
    summary = run.stderr[run.stderr.index("bulksubmit: 30 of 30 jobs failed:") :]
    assert summary.count("exit status ") == 20
    assert summary.endswith("  and 10 more; --json FILE lists all\n")


def test_files_that_are_all_unusable() -> None:
    Path("a.json").write_bytes(b"\x80")
    run = bulksubmit("--local", "a.json")
    assert run.returncode == 1
    assert "bulksubmit: Ran 0 jobs" in run.stdout
    assert "1 of 1 jobs failed" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.json"], "bulksubmit: no such file or directory: 'absent.json'\n"),
        (["--json", "absent/x", "--", "true"], "bulksubmit: cannot write 'absent/x' (--json): No such file"),
        (["-x", "--", "true"], "needs --nodes"),
        ([], "nothing to run"),
    ],
)
def test_unusable_arguments(arguments: list[str], message: str) -> None:
    run = bulksubmit("--local", *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.flux
def test_an_instance_that_is_not_there() -> None:
    run = bulksubmit("--uri", "local:///nowhere/local-0", "--", "true")
    assert run.returncode == 2
    assert "/nowhere/local-0" in run.stderr and "Traceback" not in run.stderr


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [*COMMAND, "--local", "--copies", "4", "--", "sleep", "30"],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=BOUND,
    )  # fmt: skip
    os.close(writing)
    assert run.returncode == 128 + signal.SIGPIPE
    assert run.stderr == "bulksubmit: nobody reads standard output any more: canceled the outstanding jobs\n"


# -- signals -----------------------------------------------------------------------------------------


@contextmanager
def running(where: Where, shell: str, copies: int = 20) -> Iterator[subprocess.Popen[str]]:
    """`bulksubmit` with all `copies` of a job submitted, and one of them running.

    It runs in a process group of its own, as from an interactive shell.
    """
    Path("started").unlink(missing_ok=True)
    os.mkfifo("started")
    first = "mkdir first 2>/dev/null && echo yes > started"
    process = subprocess.Popen(
        [*COMMAND, *where, "--json", "records", f"--copies={copies}", "--", "sh", "-c", f"{first}; {shell}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout
        helpers.wait_until(lambda: "submitted" in process.stdout.readline(), BOUND)
        assert Path("started").read_text() == "yes\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_what_is_outstanding(where: Where, number: signal.Signals) -> None:
    with running(where, "exec sleep 3600") as process:
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=BOUND)
    assert process.returncode == 128 + number
    assert f"bulksubmit: {number.name}: canceling 20 jobs" in out
    assert "Traceback" not in err
    statuses = [record["status"] for record in records("records").values()]
    canceled = statuses.count("canceled")
    assert f"bulksubmit: {number.name}: canceled {canceled} outstanding jobs, of which " in err
    # Flux may kill the jobs that have cores in the instant in which they start: their start failed.
    assert canceled + statuses.count("failed") == 20
    assert canceled >= 20 - len(os.sched_getaffinity(0))


def test_a_second_signal_ends_it_at_once(where: Where) -> None:
    stubborn = 'trap "" TERM INT; until [ -e over ]; do sleep 0.1; done'
    try:
        with running(where, stubborn, copies=1) as process:
            assert process.stdout and process.stderr
            process.send_signal(signal.SIGINT)
            helpers.wait_until(lambda: "canceling" in process.stdout.readline(), BOUND)
            process.send_signal(signal.SIGINT)
            assert process.wait(BOUND) == 130
            assert "stopped at once" in process.stderr.read()
    finally:
        Path("over").touch()  # it may have been too quick for Flux to be told of the first


def test_a_signal_while_it_waits_for_paths() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--local", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        helpers.wait_until(lambda: reads_stdin(process.pid), BOUND, "bulksubmit reads its stdin")
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 130
        assert process.stderr and process.stderr.read() == b""


def reads_stdin(pid: int) -> bool:
    """Whether a process waits in read(2) of its standard input."""
    try:
        number, descriptor, *_ = Path(f"/proc/{pid}/syscall").read_text().split()
    except (OSError, ValueError):
        return False
    return (number, descriptor) == ("0", "0x0")


# -- the environment ---------------------------------------------------------------------------------


def path_without_flux(directory: Path) -> str:
    """A PATH that has what these tests run, and no `flux`."""
    directory.mkdir()
    for name in ("sh", "true", "sleep"):
        (directory / name).symlink_to(f"/bin/{name}")
    return str(directory)


def test_without_flux_it_runs_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUX_URI", raising=False)
    run = bulksubmit("-v", "--", "true", PATH=path_without_flux(tmp_path / "bin"))
    assert run.returncode == 0
    assert "instance chosen instance=local: no flux command on PATH, and FLUX_URI is not set" in run.stderr


@pytest.mark.flux
def test_with_flux_it_starts_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUX_URI", raising=False)
    run = bulksubmit("-v", "--", "true")
    assert run.returncode == 0
    assert "instance chosen instance=flux: flux is on PATH, and FLUX_URI is not set" in run.stderr


@pytest.mark.flux
def test_inside_flux_it_uses_that(flux_uri: str) -> None:
    run = bulksubmit("-v", "--", "true", FLUX_URI=flux_uri)
    assert run.returncode == 0
    assert f"instance chosen uri={flux_uri}: FLUX_URI is set" in run.stderr


def test_the_C_locale() -> None:
    run = bulksubmit("--local", "--copies", "2", "--", "true", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (run.returncode, run.stderr) == (0, "")
    assert f"|{'#' * 58}| 100.0%" in run.stdout


def test_neither_parsl_nor_rich_is_imported_for_a_plain_run() -> None:
    run = bulksubmit("--local", "--", "true", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "parsl_flux_bulk.pipeline.pipeline" in imported
    assert not imported & {"parsl", "rich", "flux", "typeguard"}


# -- death -------------------------------------------------------------------------------------------


@pytest.mark.flux
def test_sigkill_cancels_its_jobs_and_no_others(flux_uri: str) -> None:
    with BulkSubmitter(flux_uri) as bulk:
        other = bulk.submit_command(["sh", "-c", "echo $$ > other; exec sleep 3600"])
        with running(["--uri", flux_uri], "echo $$ >> pids; exec sleep 3600") as process:
            helpers.wait_until(lambda: Path("pids").exists() and Path("pids").read_text(), BOUND)
            pids = [int(line) for line in Path("pids").read_text().split()]
            process.kill()
            helpers.wait_gone(pids)
            helpers.wait_until(lambda: helpers.active_job_ids(flux_uri) == {other.job_id})
        assert not other.done()
        other.cancel()
