"""Test the arguments of FluxProvider and its batch scripts, without Flux."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from parsl.launchers import SimpleLauncher
from parsl.providers.errors import ScriptPathError, SubmitException
from specifications import BAD_NUMBERS

from parsl_flux_bulk.providers import FluxLauncher, FluxProvider, OncePerBlock, seconds_of

FAKE_FLUX = """#!/bin/sh
echo "$@" "FLUX_URI=$FLUX_URI" >> {log}
test "$1" = batch && echo f1234
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a ``flux`` on PATH that logs its arguments; return the log file."""
    log, command = tmp_path / "calls", tmp_path / "bin" / "flux"
    command.parent.mkdir()
    command.write_text(FAKE_FLUX.format(log=log))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    monkeypatch.delenv("FLUX_URI", raising=False)
    return log


def script_of(directory: Path, command: str = "run me", tasks_per_node: int = 1, **options: Any) -> list[str]:
    """Submit a block to a fake Flux and return the lines of its script."""
    provider = FluxProvider(**options)
    provider.script_dir = str(directory / "scripts")
    assert provider.submit(command, tasks_per_node, "block") == "f1234"
    (script,) = Path(provider.script_dir).glob("*.sh")
    return script.read_text().splitlines()


def directives(lines: list[str]) -> set[str]:
    return {line.removeprefix("#flux: ") for line in lines if line.startswith("#flux: ")}


@pytest.mark.usefixtures("calls")
def test_every_option_reaches_the_script(tmp_path: Path) -> None:
    lines = script_of(
        tmp_path, queue="pdebug", bank="guests", nodes_per_block=3, walltime="01:02:03",
        cores_per_node=8, gpus_per_node=4, exclusive=False, scheduler_options="#flux: --urgency=20",
        worker_init="module load python",
    )  # fmt: skip
    assert lines[0] == "#!/bin/bash"
    assert directives(lines) >= {
        "--queue=pdebug", "--bank=guests", "--nodes=3", "--time-limit=3723s", "--nslots=3",
        "--cores-per-slot=8", "--gpus-per-slot=4", "--urgency=20",
    }  # fmt: skip
    assert "--exclusive" not in directives(lines)
    assert lines.index("#flux: --urgency=20") > lines.index("#flux: --queue=pdebug"), "the user's win"
    assert lines.index("module load python") < lines.index("export PARSL_CORES=8")


@pytest.mark.usefixtures("calls")
def test_whole_nodes_by_default(tmp_path: Path) -> None:
    options = {option.partition("=")[0] for option in directives(script_of(tmp_path))}
    assert options == {"--job-name", "--output", "--error", "--nodes", "--time-limit", "--exclusive"}


@pytest.mark.usefixtures("calls")
def test_a_once_per_block_command_stands_alone_and_others_are_launched_on_each_node(tmp_path: Path) -> None:
    once = script_of(tmp_path / "1", OncePerBlock("run me"), nodes_per_block=2)
    assert once[-1] == "run me"
    each = script_of(tmp_path / "2", "run me", 3, nodes_per_block=2)
    assert each[-1].startswith("flux run --nodes=2 --ntasks=6 --exclusive")
    assert each[-1].endswith("/bin/bash -c 'run me'")
    plain = script_of(tmp_path / "3", "run me", launcher=SimpleLauncher())
    assert plain[-1] == "run me"


def test_the_instance_to_submit_to_is_the_one_that_was_given(tmp_path: Path, calls: Path) -> None:
    script_of(tmp_path, uri="ssh://host/run/flux/local")
    assert calls.read_text().strip().endswith("FLUX_URI=ssh://host/run/flux/local")


def test_a_command_reaches_every_node_as_it_is() -> None:
    line = FluxLauncher(debug=False)("""echo "it's $HOME" `date`""", 1, 1)
    fake = 'flux() { shift 4; while [ $1 != /bin/bash ]; do shift; done; printf %s "$3"; }\n'
    done = subprocess.run(["bash", "-c", fake + line], capture_output=True, text=True, check=True)
    assert done.stdout == """echo "it's $HOME" `date`"""
    assert "set -x" in FluxLauncher()("true", 1, 1)
    assert " -o mpi=none " in FluxLauncher(overrides="-o mpi=none")("true", 1, 1)


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [
        ("00:00:01", 1),
        ("100:59:59", 363599),
        ("00:10:00", 600),
        ("01:00:30", 3630),
        ("1:02:03:04", 93784),
        ("1-02:03:04", 93784),
        ("05:00", 300),
        ("30", 1800),
        ("", None),
        (None, None),
        ("as long as it takes", None),
    ],
)
def test_a_walltime_is_read_as_batch_systems_write_it(walltime: str | None, seconds: int | None) -> None:
    assert seconds_of(walltime) == seconds


@pytest.mark.parametrize(
    "walltime", ["10", "00:00:00", "1:2", "01:60:00", "one hour", "-1:00:00", "999999:00:00"]
)
def test_a_bad_walltime_is_an_error_that_says_the_right_form(walltime: str) -> None:
    with pytest.raises(ValueError, match=r"must be HH:MM:SS, such as '01:30:00'"):
        FluxProvider(walltime=walltime)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"exclusive": False}, "needs cores_per_node"),
        ({"nodes_per_block": 0}, "nodes_per_block must be at least 1, not 0"),
        ({"gpus_per_node": -1}, "gpus_per_node must be at least 1"),
        ({"scheduler_options": "--queue=a"}, "must be directives such as '#flux: "),
    ],
)
def test_arguments_that_cannot_be_right(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FluxProvider(**options)


@pytest.mark.parametrize("seconds", BAD_NUMBERS)
def test_a_timeout_that_is_no_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"cmd_timeout must be a number of seconds, from 0 to .*, not "):
        FluxProvider(cmd_timeout=seconds)


def test_without_a_flux_command_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitException, match=r"flux batch did not run: .*'flux'"):
        script_of(tmp_path)


def test_a_script_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "scripts").write_text("a file, not a directory")
    with pytest.raises(ScriptPathError, match="scripts/block"):
        script_of(tmp_path)


def test_it_says_what_it_was_made_of() -> None:
    assert "queue='pdebug'" in repr(FluxProvider(queue="pdebug"))
    assert repr(FluxLauncher(overrides="-v")) == "FluxLauncher(debug=True, overrides='-v')"
    assert FluxProvider.starts_flux
