"""What the documentation names exists: parameters, modules, tests, errors, and targets of links."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
from pathlib import Path

import documentation
import helpers
import pytest
from documentation import PAGES

from parsl_flux_bulk import BulkSubmitter, FluxBulkExecutor, errors

NAMED_TEST = r"`([\w/]+\.py)::(\w+)`"


@pytest.mark.parametrize(
    ("page", "documented"), [("executor.md", FluxBulkExecutor), ("bulksubmit.md", BulkSubmitter)]
)
def test_every_parameter_is_documented(page: str, documented: type) -> None:
    text = (helpers.PROJECT / "docs" / page).read_text(encoding="utf-8")
    table = text[text.index("| Parameter |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE)
    parameters = list(inspect.signature(documented).parameters.values())
    assert rows == [(each.name, repr(each.default).replace("'", '"')) for each in parameters]


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a\n...c", "a\nb\nc\n", True),
        ("a...", "ba", False),
        ("in 0.5 s", "in 12.34 s", True),
        ("in 0.5 s", "in 12 s", False),
    ],
)
def test_an_output_is_compared(expected: str, output: str, same: bool) -> None:
    assert documentation.matches(expected, output) == same


def test_a_page_whose_code_fails_or_prints_otherwise_fails(tmp_path: Path) -> None:
    page = helpers.PROJECT / "docs" / "page.md"
    good = "```sh\necho a\n```\n<!-- output -->\n```text\na\n```\n<!-- not run: bad -->\n```sh\nfalse\n```\n"
    for text in (good, good.replace("```text\na", "```text\nb"), good.replace("<!-- not run: bad -->\n", "")):
        blocks = documentation.parse(text)
        if text == good:
            documentation.run_blocks(page, blocks, tmp_path, dict(os.environ))
        else:
            with pytest.raises(AssertionError, match=r"docs/page.md:\d+: (printed|exit status 1)"):
                documentation.run_blocks(page, blocks, tmp_path, dict(os.environ))


def test_blocks_continue_each_other_and_see_what_was_done_in_between(tmp_path: Path) -> None:
    page = helpers.PROJECT / "docs" / "page.md"
    says = "```\n<!-- output -->\n```text\n{}\n```\n"
    first = "```python\nimport os\nopen('ran', 'a').write('x')\nprint(1)\n" + says.format(1)
    second = "<!-- continues -->\n```python\nprint(os.stat('ran').st_size)\n" + says
    between = "```sh\necho -n y >> ran\n```\n"
    text = first + second.format(1) + second.format(1) + between + second.format(3) + first
    documentation.run_blocks(page, documentation.parse(text), tmp_path, dict(os.environ))
    assert (tmp_path / "ran").read_text() == "xyxx"
    with pytest.raises(AssertionError, match=r"docs/page.md:\d+: printed\n5"):
        documentation.run_blocks(page, documentation.parse(first + second.format(1)), tmp_path, {})


def test_the_modules_of_the_architecture_exist() -> None:
    text = (helpers.PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = helpers.PROJECT / "parsl_flux_bulk"
    named = set(re.findall(r"`([\w/]+\.py|\w[\w/]*/)`", text))
    existing = [f"/{path.relative_to(helpers.PROJECT)}" for path in package.rglob("*.py")]
    missing = {
        name
        for name in named
        if not (helpers.PROJECT / name).exists()
        and not any(path.endswith(f"/{name}") or f"/{name}" in path for path in existing)
    }
    assert len(named) > 50 and not missing


def test_every_promise_has_a_test_that_exists() -> None:
    text = (helpers.PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text[text.index("| Fault |") :].partition("\n\n")[0].splitlines()[2:]
    rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in table if not row.startswith("| **")]
    assert len(rows) >= 40 and {len(row) for row in rows} == {3}
    without = [row[0] for row in rows if not re.fullmatch(f"{NAMED_TEST}(, {NAMED_TEST})*", row[2].strip())]
    assert not without
    missing = {
        f"{file}::{name}" for file, name in re.findall(NAMED_TEST, text) if name not in functions_of(file)
    }
    assert not missing


@functools.cache
def functions_of(file: str) -> set[str]:
    """The test functions of a file in tests/; none if there is no such file."""
    path = helpers.PROJECT / "tests" / file
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }


def test_every_error_is_on_the_page_about_trouble() -> None:
    text = (helpers.PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.FluxBulkError)
    }
    assert len(classes) >= 17
    assert not {name for name in classes if f"`{name}`" not in text}


LANGUAGES = {*documentation.CODE, "text", "json", "sql"}

ADVICE = (
    "a block needs a language: python or sh, which run or say why not (tests/documentation.py), text, json "
    "or sql, which a test of its own runs"
)


@pytest.mark.parametrize("page", PAGES, ids=documentation.name_of)
def test_every_block_names_its_language_and_runs_or_says_why_not(page: Path) -> None:
    for block in documentation.blocks_of(page):
        where = f"line {block.line}"
        # Directives of the documentation site are in braces.
        assert block.language in LANGUAGES or block.language.startswith("{"), f"{where}: {ADVICE}"
        for key, value in block.comments.items():
            languages = documentation.KEYS[key]
            assert languages is None or block.language in languages, where
            assert value or key in ("continues", "output"), f"{where}: {key} says nothing"


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    docs = helpers.PROJECT / "docs"
    index = documentation.blocks_of(docs / "index.md")
    trees = "".join(block.text for block in index if block.language == "{toctree}")
    listed = re.findall(r"^(?:[^:\n]* <)?([\w/-]+)>?$", trees, re.MULTILINE)
    pages = [path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")]
    assert sorted(["index", *listed]) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=documentation.name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
