"""Test the check for retired words."""

from __future__ import annotations

import importlib.util

import helpers
import pytest

_spec = importlib.util.spec_from_file_location("tool", helpers.PROJECT / "tools" / "check_words.py")
assert _spec is not None and _spec.loader is not None
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("the old word", ["old"]),
        ("Olds are found", ["old"]),
        ("_old_of = newOld + OldOf(OLD)", ["old"] * 4),
        ("older, unfold, sold, FOLD", []),
        ("two parts, TwoParts and two_parts", ["two parts"] * 3),
    ],
)
def test_a_word_is_found_alone_and_in_identifiers(line: str, found: list[str]) -> None:
    uses = list(tool.uses(f"first line\n{line}", ["old", "two parts"]))
    assert [word for _, word, _ in uses] == found
    assert all(number == 2 and text == line for number, _, text in uses)


def test_the_list_names_terms_and_what_is_allowed() -> None:
    terms, allowed = tool.read_list("# old words\n\nold: new\nLICENSE allows old: a quotation\n")
    assert terms == {"old": "new"}
    assert allowed == {("LICENSE", "old")}


@pytest.mark.parametrize("line", ["old", "no/such/file allows old: reason", "LICENSE allows young: reason"])
def test_a_line_that_means_nothing_is_an_error(line: str) -> None:
    with pytest.raises(SystemExit, match=line.split(maxsplit=1)[0]):
        tool.read_list(f"old: new\n{line}\n" if line != "old" else line)
