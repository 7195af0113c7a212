"""Templates and streams: as in `flux bulksubmit`, and jobs that are read while others run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import helpers
import pytest
from test_bulksubmit import BOUND, COMMAND, Where, bulksubmit, in_tmp_path, records, where

__all__ = ["in_tmp_path", "where"]

EXAMPLES = (
    "seq 1 4 | BULKSUBMIT --dry-run echo {}",
    "BULKSUBMIT --dry-run echo {} ::: 1 2 3 4",
    "BULKSUBMIT --dry-run echo {1} {0} ::: 1 2 ::: 3 4",
    "BULKSUBMIT --dry-run echo {0} {1} ::: 1 2 :::+ 3 4",
    "seq 0 3 > inputs; BULKSUBMIT --dry-run :::: inputs",
    "seq 0 3 | BULKSUBMIT --dry-run echo {0} {1} :::: - ::: a b",
    "BULKSUBMIT --dry-run --define=p2='2**int(x)' -n {.p2} hostname ::: $(seq 0 4)",
    "seq 1 8 | BULKSUBMIT --dry-run --define=pow='2**int(x)' -n {.pow} hostname",
    "BULKSUBMIT --dry-run --output={./%}.{seq} ./x {.%} {./} {.//} {./%} {seq} {seq1} ::: a/b.c d.e.f /g",
    "BULKSUBMIT --dry-run ./x {0.%} {1.//} {1./} {0}-{1} {seq} ::: a.b c ::: d/e f/g",
    "BULKSUBMIT --dry-run --cores={} --tasks-per-core={seq1} --job-name={./%} true ::: 2 4",
    "BULKSUBMIT --dry-run -c {} --job-name=j{} --cwd=/{} ./x ::: 1 2",
)
"""The examples and the attributes of flux-bulksubmit(1)."""


@pytest.mark.flux
def test_the_commands_are_those_of_flux_bulksubmit() -> None:
    def commands(name: str, examples: Sequence[str]) -> list[str]:
        script = "; echo\n".join(example.replace("BULKSUBMIT", name) for example in examples)
        run = subprocess.run(
            ["bash", "-ec", script], capture_output=True, text=True, timeout=BOUND, check=False
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.replace("''", "").splitlines()  # flux bulksubmit does not quote

    # Without -- and without :::, words are files here.
    ours = [re.sub(r"^(seq \d+ \d+ \| .*?) (echo|hostname)", r"\1 -- \2", example) for example in EXAMPLES]
    assert commands(f"{sys.executable} -m parsl_flux_bulk", ours) == commands("flux bulksubmit", EXAMPLES)


@pytest.mark.flux
@pytest.mark.parametrize(
    "options",
    [
        "--cores=4", "--cores=4 -N2", "--cores=2 --tasks-per-core=2", "-N1 --tasks-per-node=3",
        "-N2 --gpus-per-node=1 --tasks-per-node=2", "--cores=4 --tasks-per-node=2",
        "-N1 --cores=2 --tasks-per-node=2 --exclusive", "--rlimit=nofile=100,-cpu",
        "--rlimit=-*,core,STACK=unlimited", "--rlimit=-* --rlimit=mem*",
    ],
)  # fmt: skip
def test_the_jobspecs_are_those_of_flux_submit(options: str) -> None:
    run = bulksubmit("--dry-run=specs", *options.split(), "--", "true")
    assert (run.returncode, run.stderr) == (0, "")
    ours = json.loads(Path("specs/000000.json").read_text())
    command = ["flux", "submit", "--dry-run", *options.split(), "true"]
    fluxes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (ours["resources"], ours["tasks"]) == (fluxes["resources"], fluxes["tasks"])
    ours = ours["attributes"]["system"].get("shell", {}).get("options", {})
    fluxes = fluxes["attributes"]["system"]["shell"]["options"]
    if "rlimit" not in options:  # without rules, jobs have the limits of the instance
        del fluxes["rlimit"]
    assert ours == fluxes


def test_tasks_per_core_and_limits_of_a_job(where: Where) -> None:
    run = bulksubmit(
        *where,
        *("--cores=1", "--tasks-per-core=2", "--rlimit=nofile=123", "--output=out"),
        *("--", "sh", "-c", "echo $FLUX_JOB_SIZE $(ulimit -n)"),
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert Path("out").read_text() == "2 123\n" * 2


def test_shuffle() -> None:
    inputs = [str(number) for number in range(200)]
    said = bulksubmit("--dry-run", "--shuffle", "echo", "{}", ":::", *inputs).stdout
    found = [line.rpartition(" ")[2] for line in said.splitlines()]
    assert found != inputs and sorted(found) == sorted(inputs)


def test_inputs_reach_jobs(where: Where) -> None:
    run = bulksubmit(
        *where,
        *("--output", "{0}-{cc}.out", "--cc", "0-1", "--", "sh", "-c", "echo {1} {seq} $FLUX_JOB_CC"),
        *(":::", "a", "b", ":::+", "x", "y"),
    )
    assert (run.returncode, run.stderr) == (0, "")
    found = {path.name: path.read_text() for path in Path().glob("*.out")}
    assert found == {"a-0.out": "x 0 0\n", "a-1.out": "x 0 1\n", "b-0.out": "y 1 0\n", "b-1.out": "y 1 1\n"}


def test_a_stream_of_jobs(where: Where) -> None:
    good = subprocess.run(
        [*COMMAND, "--dry-run=specs", "--", "sh", "-c", "echo c >> ran"], capture_output=True, timeout=BOUND
    )
    assert good.returncode == 0
    lines = [
        '{"command": ["sh", "-c", "echo a >> ran"], "num_tasks": 1, "label": "first"}',
        '{"command": "echo b >> ran; exit 3"}',
        Path("specs/000000.json").read_text().strip(),
        "garbage",
    ]
    run = bulksubmit(*where, "--json", "records", "--jobs", "-", stdin="\n".join(lines))
    assert run.returncode == 1
    assert sorted(Path("ran").read_text().split()) == ["a", "b", "c"]
    assert "bulksubmit: 2 of 4 jobs failed:" in run.stderr
    assert "not a valid jobspec: not JSON" in run.stderr
    record = records("records")
    assert record["first"]["status"] == record["line 3"]["status"] == "completed"


def test_jobs_run_while_more_lines_are_awaited() -> None:
    with subprocess.Popen(
        [*COMMAND, "--local", "--json", "records", "--commands", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        process.stdin.write("echo 1 > one\n")
        helpers.wait_until(lambda: Path("records").exists() and Path("records").read_text(), BOUND)
        process.stdin.write("cat one > two\n")
        process.stdin.close()
        assert process.wait(BOUND) == 0
        assert "Ran 2 jobs" in process.stdout.read()
    assert Path("two").read_text() == "1\n"


@pytest.mark.parametrize("arguments", [["--", "echo", "{}"], ["--commands", "-"], ["--jobs", "-"]])
def test_nothing_on_stdin(arguments: list[str]) -> None:
    run = bulksubmit("--local", *arguments)
    assert run.returncode == 1
    assert run.stderr == "bulksubmit: no inputs from stdin\n"


def test_dry_run_writes_jobspecs_that_run(where: Where) -> None:
    run = bulksubmit("--dry-run=specs", "--copies", "3", "--", "sh", "-c", "echo $FLUX_JOB_CC >> ran")
    assert (run.returncode, run.stdout) == (0, "bulksubmit: wrote 3 jobspec files to specs\n")
    again = bulksubmit("--dry-run=specs", "--", "true")
    assert (again.returncode, again.stdout) == (2, "")
    assert "there are *.json files" in again.stderr
    assert bulksubmit(*where, "specs").returncode == 0
    assert sorted(Path("ran").read_text().split()) == ["0", "1", "2"]
    system = json.loads(Path("specs/000002.json").read_text())["attributes"]["system"]
    assert system["environment"]["FLUX_JOB_CC"] == "2"
