"""What a person typed, as jobspec files."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput, find_files


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names(*typed: str, stdin: tuple[str, ...] = ()) -> list[str]:
    return [str(path) for path in find_files(typed, stdin)[0]]


def test_files_keep_the_order_in_which_they_were_typed() -> None:
    touch("b.json", "a.json", "c.anything")
    assert names("b.json", "c.anything", "a.json") == ["b.json", "c.anything", "a.json"]


def test_a_directory_stands_for_its_json_files_in_the_order_of_their_names() -> None:
    touch("jobs/10.json", "jobs/09.json", "jobs/readme.txt", "jobs/deeper/1.json")
    assert names("jobs") == ["jobs/09.json", "jobs/10.json"]


def test_stdin_has_a_path_on_each_line() -> None:
    touch("with space.json", "jobs/1.json")
    stdin = ("with space.json\n", "\n", "jobs\n", "absent.json")
    assert names("-", stdin=stdin) == ["with space.json", "jobs/1.json", "absent.json"]


def test_a_file_given_twice_counts_once() -> None:
    touch("jobs/1.json", "jobs/2.json")
    Path("link.json").symlink_to("jobs/1.json")
    files, repeated = find_files(["jobs", "jobs/2.json", "./jobs/../jobs/2.json", "link.json"], ())
    assert [str(path) for path in files] == ["jobs/1.json", "jobs/2.json"]
    assert repeated == 3


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("absent.json", "no such file or directory: 'absent.json'"),
        ("echo", "no such file or directory: 'echo'; a command stands after --: bulksubmit -- echo ..."),
        ("jobs/*.json", "no file matches 'jobs/*.json'"),
        ("empty", "no *.json files in the directory 'empty'"),
        ("-", "no paths on stdin"),
    ],
)
def test_what_names_nothing_is_refused(typed: str, message: str) -> None:
    touch("empty/notes.txt", "there.json")
    with pytest.raises(UnusableInput) as caught:
        names("there.json", typed, stdin=("\n",))
    assert message in str(caught.value)


def test_a_quoted_pattern_stands_for_what_the_shell_would_pass() -> None:
    touch("jobs/10.json", "jobs/09.json", "jobs/.hidden.json", "jobs/deeper/1.json", "jobs/deeper/notes.txt")
    assert names("jobs/*") == ["jobs/09.json", "jobs/10.json", "jobs/deeper/1.json"]
    assert names("jobs/?[0-5].json", "jobs/*.json") == ["jobs/10.json", "jobs/09.json"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file() -> None:
    touch("job[1].json")
    assert names("job[1].json") == ["job[1].json"]


def test_a_link_inside_a_directory_is_its_target() -> None:
    touch("jobs/b.json")
    Path("jobs/a.json").symlink_to("b.json")
    Path("jobs/c.json").symlink_to("gone.json")
    files, repeated = find_files(["jobs", "jobs/b.json"], ())
    assert [path.name for path in files] == ["a.json", "c.json"]
    assert repeated == 2
