"""What may be typed after `bulksubmit`, and what is said about the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parsl_flux_bulk.cli.bulksubmit.arguments import COMMAND_ONLY, parse
from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.work import Work
from parsl_flux_bulk.version import __version__


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_everything_after_the_dashes_is_the_command() -> None:
    options = parse(["--copies", "3", "--", "prog", "-n", "7", "--", "--json", "x"])
    assert options.copies == 3
    assert options.command == ["prog", "-n", "7", "--", "--json", "x"]
    assert options.json is None


def test_files_and_options_may_be_mixed() -> None:
    options = parse(["a.json", "--strict", "b.json", "--max-active", "5"])
    assert (options.inputs, options.strict, options.max_active) == (["a.json", "b.json"], True, 5)


def test_every_option_of_a_command_exists() -> None:
    assert set(COMMAND_ONLY) <= vars(parse(["--", "true"])).keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to run"),
        (["--"], "no command after --"),
        (["a.json", "--", "true"], "give files or a command, not both: 'a.json'"),
        (["--copies", "3", "a.json"], "--copies needs a command"),
        (["--cores-per-task", "3", "a.json"], "--cores-per-task needs a command"),
        (["--copies", "0", "--", "true"], "must be an integer of at least 1, not '0'"),
        (["--copies", "x", "--", "true"], "must be an integer of at least 1, not 'x'"),
        (["--max-active", "-1", "a.json"], "must be an integer of at least 1, not '-1'"),
        (["--urgency", "32", "a.json"], "must be from 0 (hold) to 31 (expedite), not '32'"),
        (["--duration", "5 min", "--", "true"], "not '5 min'"),
        (["--duration=-5", "--", "true"], "not '-5'"),
        (["--duration", "1e300", "--", "true"], "must be at most 1e+09 seconds"),
        (["--uri", "nonsense", "a.json"], "must be a URI"),
        (["--instances", "2", "a.json"], "it was removed, because --packed is faster"),
        (["--uri", "local:///x", "--local", "a.json"], "not allowed with argument"),
        (["--commands", "f", "--copies", "2"], "--copies needs a command"),
        (["--commands", "f", "--jobs", "f"], "give one of files, a command, --commands, --jobs, not"),
        (["--cc", "1", "--copies", "2", "--", "true"], "give one of --copies, --cc and --bcc"),
        (["--literal", "echo", ":::", "a"], "--literal leaves no place for inputs"),
        (["echo", ":::"], "no inputs after :::"),
        (["echo", ":::+", "a"], "the first input list is linked"),
        (["echo", "::::", "a", "b"], ":::: takes one file"),
        (["echo", "::::", "-", "::::", "-"], "two input lists are read from stdin"),
        (["-t", "5", "--duration", "5", "--", "true"], "not allowed with argument"),
        (["--add-file=x", "--", "true"], "--add-file is not supported here: put the file where"),
        (["--list-plugins"], "--list-plugins is not supported here: `flux submit --list-plugins`"),
        (["--stric", "a.json"], "unrecognized arguments: --stric"),
    ],
)
def test_unusable_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, *arguments)


def test_a_request_that_no_jobspec_can_hold_is_refused_before_anything_starts() -> None:
    with pytest.raises(UnusableInput, match=r"--exclusive: .* needs --nodes"):
        Work(parse(["-x", "--", "true"]))


def test_options_of_flux_that_are_always_so() -> None:
    assert parse(["--wait", "--progress", "--jps", "--quiet", "--", "true"]).command == ["true"]


def test_completion(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    line = "bulksubmit --output-"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
    }  # fmt: skip
    run = subprocess.run([sys.executable, "-m", "parsl_flux_bulk"], env=environment, capture_output=True)
    assert (run.returncode, run.stdout) == (0, b"")
    assert "--output-dir" in (tmp_path / "answer").read_text()


def test_manual_page(tmp_path: Path) -> None:
    pytest.importorskip("argparse_manpage")
    module = ["--module", "parsl_flux_bulk.cli.bulksubmit.option_parser", "--function", "option_parser"]
    code = "import sys; from argparse_manpage.cli import main; sys.exit(main())"
    page = tmp_path / "bulksubmit.1"
    subprocess.run(
        [sys.executable, "-c", code, *module, "--project-name", "x", "--output", str(page)], check=True
    )
    assert "\\-\\-resume" in page.read_text() and "every job ended with exit status 0" in page.read_text()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"bulksubmit {__version__}\n"


def test_help_fits_a_terminal_and_names_every_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for status in ("0 ", "1 ", "2 ", "130, 143, 129"):
        assert f"\n  {status}" in shown
