"""The built documentation site has every public name; `tox run -e docs` builds the site first."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import zlib
from pathlib import Path

import helpers
import pytest

import parsl_flux_bulk
from parsl_flux_bulk import BulkSubmitter, FluxBulkExecutor, FluxPoolExecutor, JobFuture, errors
from parsl_flux_bulk.cli import flux_bulk
from parsl_flux_bulk.cli.bulksubmit.option_parser import option_parser
from parsl_flux_bulk.jobspec.validate_resource_keys import VALID_KEYS

SITE = Path(os.environ.get("DOCUMENTATION_SITE", ""))

pytestmark = pytest.mark.skipif(
    "DOCUMENTATION_SITE" not in os.environ, reason="the documentation site is built under `tox run -e docs`"
)

PACKAGE = helpers.PROJECT / "parsl_flux_bulk"


def inventory() -> dict[str, set[str]]:
    """Return what the site describes, by kind: the lines of ``objects.inv`` are ``name domain:kind …``."""
    content = (SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]
    described: dict[str, set[str]] = {}
    for line in zlib.decompress(content).decode().splitlines():
        if found := re.match(r"(.+?) \w+:(\w+) -?\d+ ", line):
            described.setdefault(found[2], set()).add(found[1])
    return described


def text_of(page: str) -> str:
    """Return the text of a page of the site, without markup."""
    return re.sub(r"<[^>]*>", "", (SITE / page).read_text(encoding="utf-8"))


def test_every_public_name_has_a_reference() -> None:
    described = inventory()["class"] | inventory()["function"]
    named = {f"parsl_flux_bulk.{name}" for name in parsl_flux_bulk.__all__ if not name.startswith("__")}
    assert len(named) >= 4 and not named - described
    assert "parsl_flux_bulk.__version__" in text_of("reference/executors.html")


def test_every_error_has_a_reference() -> None:
    classes = {
        f"parsl_flux_bulk.errors.{name}"
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.FluxBulkError)
    }
    assert len(classes) >= 17 and not classes - inventory()["exception"]


@pytest.mark.parametrize("documented", [FluxBulkExecutor, FluxPoolExecutor, BulkSubmitter])
def test_every_parameter_is_described(documented: type) -> None:
    parameters = inspect.signature(documented).parameters.values()
    names = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
    docstring = inspect.getdoc(documented) or ""
    section = docstring.partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    described = {name for line in section.splitlines() for name in names_of(line)}
    assert len(names) >= 4 and not names - described - {"label"}


def names_of(line: str) -> list[str]:
    """Return the parameters that a line of a NumPy docstring names: ``a, b : int``; none if it is text."""
    return [] if line.startswith(" ") else re.findall(r"\w+", line.partition(" : ")[0])


@pytest.mark.parametrize("documented", [FluxBulkExecutor, FluxPoolExecutor, BulkSubmitter, JobFuture])
def test_every_public_method_has_a_reference(documented: type) -> None:
    described = inventory()
    here = (
        described.get("method", set()) | described.get("property", set()) | described.get("attribute", set())
    )
    own = {
        name
        for each in documented.__mro__
        if each.__module__.startswith("parsl_flux_bulk")
        for name, value in vars(each).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }
    missing = {name for name in own if f"parsl_flux_bulk.{documented.__name__}.{name}" not in here}
    assert missing <= UNDESCRIBED.get(documented.__name__, set())


UNDESCRIBED = {
    "FluxBulkExecutor": {
        # What Parsl calls.
        "start", "scale_in", "scale_out_facade", "status", "outstanding",
        "handle_errors", "set_bad_state_and_fail_all",
        # What FluxPoolExecutor calls.
        "queue", "submit_call",
    },
    "JobFuture": {"is_awaited"},  # what the completion thread asks
}  # fmt: skip
"""Methods that are not for users."""


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a command and its subcommands as the inventory names them."""
    named = set()
    program = parser.prog.replace(" ", "-")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            named |= {option for sub in action.choices.values() for option in options_of(sub)}
        elif action.help != argparse.SUPPRESS:
            named |= {f"{program}.{name}" for name in action.option_strings}
    return named


@pytest.mark.parametrize("parser", [option_parser, flux_bulk.parser], ids=["bulksubmit", "flux-bulk"])
def test_every_option_has_a_reference(parser: object) -> None:
    assert callable(parser)
    named = options_of(parser())
    assert len(named) >= 3 and not named - inventory()["cmdoption"]


def test_every_resource_key_has_a_reference() -> None:
    text = (SITE / "resources.html").read_text(encoding="utf-8")
    rows = set(re.findall(r"<tr[^>]*>\s*<td><p><code[^>]*><span[^>]*>(\w+)</span>", text))
    assert not set(VALID_KEYS) - rows


def test_every_environment_variable_has_a_reference() -> None:
    read = set()
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        read |= set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z][A-Z_0-9]+)\"", source))
    read = {name for name in read if not name.startswith("PARSL_FLUX_BULK_")}
    assert len(read) >= 10 and not read - inventory()["envvar"]


def test_the_pages_show_no_markup() -> None:
    pages = [path for path in SITE.rglob("*.html") if "_" not in path.parts[len(SITE.parts)][:1]]
    assert len(pages) > 25
    markup = {
        path.name: found
        for path in pages
        if (found := re.findall(r":(?:class|func|meth|mod|doc):|\.\. \w+::|\]\([\w./#-]+\)", body(path)))
    }
    assert not markup


def body(path: Path) -> str:
    """Return the text of a page's article, without markup and code."""
    article = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
    article = re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", "", article)
