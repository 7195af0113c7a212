"""Build the documentation with Sphinx: ``tox run -e docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from parsl_flux_bulk import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "parsl-flux-bulk"
author = copyright = "The parsl-flux-bulk developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_line",
    "repository_links",
]
exclude_patterns = ["extensions"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have the types
napoleon_google_docstring = False
napoleon_use_ivar = True
default_role = "code"

copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

pygments_dark_style = "monokai"
smartquotes = False  # they make a dash of the -- of options
html_theme = "furo"
html_title = f"parsl-flux-bulk {__version__}"
html_theme_options = {"source_view_link": ""}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def of_this_package(app: Any, kind: str, name: str, member: object, skip: bool, options: Any) -> bool | None:
    """Leave out what classes inherit from Parsl and from the standard library."""
    function = getattr(member, "fget", None) or member
    module = getattr(function, "__module__", None) or "parsl_flux_bulk"
    return None if str(module).startswith("parsl_flux_bulk") else True


def link_pages(app: Any, what: str, name: str, member: object, options: Any, lines: list[str]) -> None:
    """Turn names of pages in docstrings, such as ``docs/mpi.md``, into links."""
    lines[:] = [re.sub(r"``docs/([\w/-]+)\.md``", r":doc:`/\1`", line) for line in lines]


def setup(app: Any) -> None:
    """Connect the filter and the links."""
    app.connect("autodoc-skip-member", of_this_package)
    app.connect("autodoc-process-docstring", link_pages)
