"""What a job's processes see: environment, directory, ranks, files, input and output."""

from __future__ import annotations

import sys
from pathlib import Path

import helpers
import pytest
from seam import Seam, files, jobspec, shell

from parsl_flux_bulk.errors import OutputUnavailable
from parsl_flux_bulk.instances.base import START, JobStatus
from parsl_flux_bulk.instances.output_parts import read_all


def lines(seam: Seam, text: str) -> list[str]:
    """Run a job to its success; its standard output, sorted."""
    job_id, result = seam.run_one(text)
    assert result.ok, result
    return sorted(read_all(seam.connection, job_id)[0].splitlines())


def test_environment(seam: Seam) -> None:
    text = shell('echo "$COLOR|${HOME-unset}"', environment={"COLOR": "a b\nü", "HOME": "/x"})
    assert lines(seam, text) == sorted(["a b", "ü|/x"])


def test_only_the_jobspec_environment(seam: Seam, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = shell('echo "${LEAKED-unset}"')
    spec.system["environment"] = {"PATH": "/usr/bin:/bin"}
    monkeypatch.setenv("LEAKED", "yes")
    assert lines(seam, spec) == ["unset"]


def test_working_directory(seam: Seam, tmp_path: Path) -> None:
    assert lines(seam, shell("pwd", cwd=tmp_path)) == [str(tmp_path)]


def test_ranks_of_several_tasks(seam: Seam) -> None:
    script = "echo $FLUX_TASK_RANK $FLUX_TASK_LOCAL_ID $FLUX_JOB_SIZE $FLUX_JOB_NNODES"
    cores = seam.connection.capacity().cores
    assert lines(seam, shell(script, tasks=cores)) == [f"{rank} {rank} {cores} 1" for rank in range(cores)]


def test_tasks_per_node(seam: Seam) -> None:
    script = "echo $FLUX_TASK_RANK $FLUX_JOB_SIZE"
    text = shell(script, cores=1, nodes=1, per_resource={"type": "node", "count": 3})
    assert lines(seam, text) == ["0 3", "1 3", "2 3"]


def test_tasks_per_core(seam: Seam) -> None:
    cores = seam.connection.capacity().cores
    text = shell("echo $FLUX_TASK_RANK", tasks=cores, per_resource={"type": "core", "count": 2})
    assert lines(seam, text) == [str(rank) for rank in range(2 * cores)]


def test_output_is_kept_apart(seam: Seam) -> None:
    job_id, _ = seam.run_one(shell("echo out; echo err >&2; printf last"))
    assert read_all(seam.connection, job_id) == ("out\nlast", "err\n")


def test_output_is_read_in_parts_of_bounded_size(seam: Seam) -> None:
    script = "import sys\nfor n in range(100_000): print(n, 40 * 'é')\nprint('late', file=sys.stderr)"
    job_id, _ = seam.run_one(jobspec([sys.executable, "-c", script]))  # 8.7 MB
    parts = [seam.connection.output(job_id, START)]
    while parts[-1]:
        parts.append(seam.connection.output(job_id, parts[-1].end))
    assert max(len(part.stdout.encode(errors="surrogateescape")) for part in parts) < 5_000_000
    expected = "".join(f"{n} {40 * 'é'}\n" for n in range(100_000)), "late\n"
    assert read_all(seam.connection, job_id) == expected


def test_output_of_a_running_job_goes_on_where_it_was_read(seam: Seam, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    (job_id,) = seam.submit(shell(f"echo one; until [ -e {gate} ]; do sleep 0.05; done; echo two"))
    first = helpers.wait_until(lambda: seam.connection.output(job_id, START), what="the first line")
    assert first.stdout == "one\n"
    assert not seam.connection.output(job_id, first.end)
    gate.touch()
    seam.wait([job_id])
    assert seam.connection.output(job_id, first.end).stdout == "two\n"


def test_output_of_a_job_without_any(seam: Seam) -> None:
    job_id, _ = seam.run_one(jobspec(["true"]))
    assert read_all(seam.connection, job_id) == ("", "")


def test_output_of_an_unknown_job_is_an_error(seam: Seam) -> None:
    with pytest.raises(OutputUnavailable):
        read_all(seam.connection, 987654321)


@pytest.mark.parametrize("flaw", ["missing", "file"])
def test_a_job_without_its_working_directory_fails(seam: Seam, tmp_path: Path, flaw: str) -> None:
    directory = tmp_path / "absent" / "deeper"
    if flaw == "file":
        directory = tmp_path / "file"
        directory.write_text("")
    _, result = seam.run_one(shell(f"echo ran > {tmp_path}/ran", cwd=directory, **files("out.txt")))
    assert result.status is JobStatus.FAILED
    assert str(directory) in result.note
    assert not (tmp_path / "ran").exists()
    assert not directory.is_dir()
    assert not Path("/tmp/out.txt").exists()


def test_a_working_directory_that_vanishes_before_the_start(seam: Seam, tmp_path: Path) -> None:
    directory = tmp_path / "soon-gone"
    directory.mkdir()
    cores = seam.connection.capacity().cores
    blocker, job = seam.submit(
        shell("while [ ! -e go ]; do sleep 0.05; done", cwd=tmp_path, cores=cores),
        shell("true", cwd=directory),
    )
    directory.rmdir()
    (tmp_path / "go").touch()
    _, result = seam.wait([blocker, job])
    assert result.status is JobStatus.FAILED
    assert str(directory) in result.note


def test_directories_of_output_files_are_made(seam: Seam, tmp_path: Path) -> None:
    assert seam.run_one(shell("echo hi; echo err >&2", cwd=tmp_path, **files("a/b/out", "c/err")))[1].ok
    assert (tmp_path / "a/b/out").read_text() == "hi\n"
    assert (tmp_path / "c/err").read_text() == "err\n"


def test_a_command_finds_its_standard_input_empty(seam: Seam, tmp_path: Path) -> None:
    assert lines(seam, shell("cat; echo end", cwd=tmp_path)) == ["end"]
    assert lines(seam, shell("cat; echo end", cwd=tmp_path, tasks=1)) == ["end"]


def test_output_on_a_full_disk_is_no_success(seam: Seam) -> None:
    _, result = seam.run_one(shell("echo lost; true", **files("/dev/full")))
    assert result.status is JobStatus.FAILED
    assert "no space left" in result.note.lower()


def test_files_with_templates(seam: Seam, tmp_path: Path) -> None:
    text = shell(
        "echo out; echo err >&2", cwd=tmp_path, **files("out-{{id}}.txt", "{{name}}-{{jobid}}.{{size}}")
    )
    job_id, result = seam.run_one(text)
    assert result.ok
    name = seam.instance.job_name(job_id)
    assert (tmp_path / f"out-{name}.txt").read_text() == "out\n"
    assert (tmp_path / f"sh-{name}.1").read_text() == "err\n"
    assert read_all(seam.connection, job_id) == ("", "")


def test_decimal_id_and_unknown_template(seam: Seam) -> None:
    job_id, result = seam.run_one(jobspec(["echo", "{{id.dec}} {{nope}} {{taskid}}"]))
    assert result.ok
    own = job_id & (2**64 - 1)  # a federation's number of a job is its member's, and which member
    assert read_all(seam.connection, job_id)[0] == f"{own} {{{{nope}}}} 0\n"


def test_error_goes_to_the_output_file_without_one_of_its_own(seam: Seam, tmp_path: Path) -> None:
    seam.run(shell("echo out; echo err >&2", cwd=tmp_path, **files("both.txt")))
    assert sorted((tmp_path / "both.txt").read_text().splitlines()) == ["err", "out"]


def test_all_tasks_write_into_one_file(seam: Seam, tmp_path: Path) -> None:
    text = shell(
        "echo rank $FLUX_TASK_RANK",
        cwd=tmp_path,
        per_resource={"type": "core", "count": 3},
        **files("all.txt"),
    )
    assert seam.run_one(text)[1].ok
    assert sorted((tmp_path / "all.txt").read_text().splitlines()) == ["rank 0", "rank 1", "rank 2"]


def test_a_file_a_task(seam: Seam, tmp_path: Path) -> None:
    text = shell(
        "echo $FLUX_TASK_RANK",
        cwd=tmp_path,
        per_resource={"type": "core", "count": 2},
        **files("{{taskid}}.txt"),
    )
    assert seam.run_one(text)[1].ok
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["0\n", "1\n"]


def test_labeled_output(seam: Seam, tmp_path: Path) -> None:
    per_core = {"type": "core", "count": 2}
    text = shell("echo a; echo b", cwd=tmp_path, per_resource=per_core, **files("labeled", label=True))
    assert seam.run_one(text)[1].ok
    assert sorted((tmp_path / "labeled").read_text().splitlines()) == ["0: a", "0: b", "1: a", "1: b"]


def test_a_file_is_replaced_or_appended_to(seam: Seam, tmp_path: Path) -> None:
    old = tmp_path / "file"
    old.write_text("old, and longer than what comes\n")
    seam.run(shell("echo new", cwd=tmp_path, **files("file")))
    assert old.read_text() == "new\n"
    seam.run(shell("echo more", cwd=tmp_path, **files("file", mode="append")))
    assert old.read_text() == "new\nmore\n"


def test_input_from_a_file(seam: Seam, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("b\na\n")
    stdin = {"stdin": {"type": "file", "path": str(tmp_path / "in.txt")}}
    assert lines(seam, jobspec(["cat"], input=stdin)) == ["a", "b"]


def test_stderr_tail_of_a_job_whose_stderr_goes_to_a_file(seam: Seam, tmp_path: Path) -> None:
    _, result = seam.run_one(shell("echo reason >&2; exit 1", cwd=tmp_path, **files("o", "e")))
    assert (tmp_path / "e").read_text() == "reason\n"
    assert result.stderr == "reason"


def test_a_lot_of_output(seam: Seam) -> None:
    job_id, result = seam.run_one(shell("seq 1 20000"))
    assert result.ok
    assert read_all(seam.connection, job_id)[0].split()[-1] == "20000"
