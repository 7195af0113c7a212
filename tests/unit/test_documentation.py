"""What the documentation names exists: parameters, and pages and headings that links lead to."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import helpers
import pytest

from parsl_flux_bulk import BulkSubmitter, FluxBulkExecutor

PAGES = [
    *sorted(helpers.PROJECT.glob("*.md")),
    *sorted((helpers.PROJECT / "docs").glob("*.md")),
]


@pytest.mark.parametrize(
    ("page", "documented"), [("executor.md", FluxBulkExecutor), ("bulksubmit.md", BulkSubmitter)]
)
def test_every_parameter_is_documented(page: str, documented: type) -> None:
    text = (helpers.PROJECT / "docs" / page).read_text(encoding="utf-8")
    table = text[text.index("| Parameter |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE)
    parameters = list(inspect.signature(documented).parameters.values())
    assert rows == [(each.name, repr(each.default).replace("'", '"')) for each in parameters]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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
