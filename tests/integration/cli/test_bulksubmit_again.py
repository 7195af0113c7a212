"""Failures: shown, counted, retried, and run again; runs that go on after SIGKILL."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import helpers
import pytest
from test_bulksubmit import BOUND, COMMAND, Where, bulksubmit, in_tmp_path, where

__all__ = ["in_tmp_path", "where"]


def all_records(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_the_first_failure_is_shown_while_others_run() -> None:
    shell = "test {} = go || { echo why >&2; exit 7; }; until [ -e go ]; do sleep 0.05; done"
    with subprocess.Popen(
        [*COMMAND, "--local", "sh", "-c", shell, ":::", "go", "x"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        first = process.stderr.readline()
        assert re.fullmatch(r"bulksubmit: first failure: .* #2 \(job \S+\): exit status 7\n", first)
        assert process.stderr.readline() == "      | why\n"
        assert process.poll() is None
        Path("go").touch()
        rest = process.stderr.read()
    assert process.returncode == 1
    assert rest.startswith("bulksubmit: 1 of 2 jobs failed:\n")


def test_failures_of_one_cause_are_one_entry(where: Where) -> None:
    run = bulksubmit(*where, "sh", "-c", "echo {0} bad >&2; exit {1}", ":::", "x", ":::", *"2222223")
    assert run.returncode == 1
    said = run.stderr.partition("bulksubmit: 7 of 7 jobs failed:\n")[2].splitlines()
    entry = said.index("  6 jobs: exit status 2")
    assert said[entry + 1].count("(job ") == 3 and said[entry + 1].endswith(" and 3 more")
    assert said[entry + 2] == "      | x bad"
    assert sum(line.endswith(": exit status 3") for line in said) == 1


def test_max_fails_cancels_the_rest(where: Where) -> None:
    run = bulksubmit(
        *where, "--max-fails=2", "--json=records", "sh", "-c", "sleep {0}; exit 3", ":::", *"00", *["60"] * 6
    )
    assert run.returncode == 1
    assert "bulksubmit: --max-fails 2: canceling 6 jobs\n" in run.stdout
    assert " left)" not in run.stdout
    assert "bulksubmit: 2 of 8 jobs failed:" in run.stderr
    assert "bulksubmit: --max-fails 2: canceled 6 outstanding jobs, of which " in run.stderr
    statuses = sorted(str(record["status"]) for record in all_records("records"))
    assert statuses == ["canceled"] * 6 + ["failed"] * 2


def test_max_fails_counts_files_that_are_not_jobspecs() -> None:
    for name in "abc":
        Path(f"{name}.json").write_text("[]")
    run = bulksubmit("--local", "--max-fails", "2", "--json", "records", "a.json", "b.json", "c.json")
    assert run.returncode == 1
    assert "bulksubmit: 1 jobs were not submitted yet" in run.stderr
    assert [record["status"] for record in all_records("records")] == ["invalid", "invalid", "not-submitted"]


ONCE = "mkdir {0} 2>/dev/null && exit 5; exit 0"


def test_retries(where: Where) -> None:
    run = bulksubmit(*where, "--retries=1", "--json=records", "sh", "-c", ONCE, ":::", "a", "b")
    assert (run.returncode, run.stderr) == (0, "")
    assert "bulksubmit: Ran 2 jobs" in run.stdout and "bulksubmit: Retried 2 times\n" in run.stdout
    assert [(record["status"], record["retries"]) for record in all_records("records")] == [
        ("completed", 1)
    ] * 2
    run = bulksubmit(*where, "--retries=2", "--json=records", "--", "sh", "-c", "echo x >> tries; exit 1")
    assert run.returncode == 1
    assert Path("tries").read_text() == "x\n" * 3
    assert [record["retries"] for record in all_records("records")] == [2]


@pytest.mark.parametrize(
    ("what", "shell", "tries"),
    [
        ("5", "exit 5", 2), ("5", "exit 6", 1), ("lost", "exit 5", 1), ("exit", "kill -9 $$", 2),
        ("timeout", "exec sleep 60", 2), ("exit,lost", "exec sleep 60", 1),
    ],
)  # fmt: skip
def test_what_is_retried(where: Where, what: str, shell: str, tries: int) -> None:
    options = ["--retries=1", f"--retry-on={what}", "--duration=0.5s"]
    run = bulksubmit(*where, *options, "--", "sh", "-c", f"echo x >> tries; {shell}")
    assert run.returncode == 1
    assert Path("tries").read_text() == "x\n" * tries


def test_resume_and_rerun(where: Where) -> None:
    command = ["sh", "-c", "echo {0} >> ran; test -e good || exit {0}", ":::", "0", "0", "1", "1", "2"]
    first = [*command[:4], *command[4:7]]
    assert bulksubmit(*where, "--resume=records", *first).returncode == 1  # no records yet
    assert sorted(Path("ran").read_text().split()) == ["0", "0", "1"]
    Path("ran").unlink()
    Path("good").touch()
    run = bulksubmit(*where, "--rerun=records", *command)
    assert run.returncode == 0
    assert Path("ran").read_text() == "1\n1\n"  # the second of two equal jobs has not run either
    assert "bulksubmit: Skipped 3 jobs of the earlier run\n" in run.stdout
    Path("ran").unlink()
    run = bulksubmit(*where, "--resume=records", *command)
    assert (run.returncode, run.stderr) == (0, "")
    assert Path("ran").read_text() == "2\n"
    assert len(all_records("records")) == 6
    run = bulksubmit(*where, "--resume=records", "--", "true")
    assert "none of these jobs is in the records" in run.stderr


def test_records_that_cannot_be_used() -> None:
    Path("records").write_text('{"key": 1, "status": "completed"}\nx\n')
    for arguments, message in (
        (["--resume=records"], "'records': line 2 is not a record that `bulksubmit --json` wrote"),
        (["--rerun=absent"], "cannot read 'absent' (--rerun): No such file"),
        (["--resume=absent", "--json=x"], "leave out --json"),
        (["--retry-on=exit"], "--retry-on needs --retries N"),
        (["--retries=1", "--retry-on=never"], "must be some of exit, lost, timeout and exit statuses"),
    ):
        run = bulksubmit("--local", *arguments, "--", "true")
        assert (run.returncode, run.stdout) == (2, "")
        assert message in run.stderr
    assert not Path("absent").exists()


def test_a_record_that_was_cut_off_is_dropped() -> None:
    command = ["--resume=records", "echo", "{}", ":::", "a", "b"]
    assert bulksubmit("--local", "--json=records", *command[1:]).returncode == 0
    text = Path("records").read_text()
    Path("records").write_text(text[:-20])
    assert bulksubmit("--local", *command).returncode == 0
    assert sorted(str(record["key"]) for record in all_records("records")) == sorted(
        json.loads(line)["key"] for line in text.splitlines()
    )


def test_two_commands_with_one_file_of_records() -> None:
    with subprocess.Popen(
        [*COMMAND, "--local", "--json", "records", "--", "sh", "-c", "until [ -e go ]; do sleep 0.05; done"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline()
        for option in ("--json", "--resume"):
            run = bulksubmit("--local", option, "records", "--", "true")
            assert (run.returncode, run.stdout) == (2, "")
            assert run.stderr == "bulksubmit: another bulksubmit writes its records to 'records'\n"
        Path("go").touch()
        process.stdout.read()
    assert process.returncode == 0
    assert len(all_records("records")) == 1


@pytest.mark.timeout(240)
def test_kill_and_resume_until_all_ran(where: Where) -> None:
    total = 500 if where == ["--local"] else 150
    # A run stands when all jobs below the limit have ended: it cannot come to its end before it is killed.
    shell = "until [ {0} -lt $(cat limit) ]; do sleep 0.1; done"
    command = [*COMMAND, *where, "--resume", "records", "sh", "-c", shell, ":::", *map(str, range(total))]
    records, limit = Path("records"), Path("limit")

    def recorded() -> int:
        return len(records.read_bytes().splitlines()) if records.exists() else 0

    for turn in range(1, 5):
        limit.write_text(str(turn * total // 6))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            helpers.wait_until(lambda turn=turn: recorded() > (turn - 0.5) * total / 6, BOUND)
            process.kill()
    assert recorded() < total
    limit.write_text(str(total))
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=2 * BOUND).returncode == 0
    done = [record["key"] for record in all_records("records") if record["status"] == "completed"]
    assert len(done) == len(set(done)) == total
