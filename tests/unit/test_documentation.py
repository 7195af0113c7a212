"""What the documentation names exists: parameters, and pages and headings that links lead to."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import helpers
import pytest

from parsl_flux_bulk import FluxBulkExecutor

PAGES = [
    *sorted(helpers.PROJECT.glob("*.md")),
    *sorted((helpers.PROJECT / "docs").glob("*.md")),
]


def test_every_parameter_of_the_executor_is_documented() -> None:
    text = (helpers.PROJECT / "docs" / "executor.md").read_text(encoding="utf-8")
    parameters = text[text.index("## Parameters") : text.index("`instance` is one of")]
    documented = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", parameters, re.MULTILINE)
    signature = inspect.signature(FluxBulkExecutor.__init__).parameters.values()
    actual = [(parameter.name, parameter.default) for parameter in signature if parameter.name != "self"]
    assert documented == [(name, repr(default).replace("'", '"')) for name, default in actual]


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
