"""Sphinx extension: links to files outside of ``docs/`` lead to pages of the site.

On a forge, pages link to the repository's files, such as ``../configs/slurm.py``. The site has some of these
files as pages, and all configurations on one page.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

TARGETS = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
    "LICENSE": "index.md",
}

_LINK = re.compile(r"\]\(((?:\.\./)+)([^)#]+)(#[^)]*)?\)")


def rewrite(app: Any, docname: str, source: list[str]) -> None:
    """Replace the targets in a page's links."""
    depth = len(PurePosixPath(docname).parts) - 1

    def target(link: re.Match[str]) -> str:
        up, path, anchor = link[1], link[2], link[3] or ""
        if up.count("../") != depth + 1:
            return link[0]  # inside docs/
        to_root = "../" * depth
        if path.startswith("configs"):
            heading = PurePosixPath(path).name.replace(".", "")
            return f"]({to_root}sites.md" + ("" if heading == "configs" else f"#{heading}") + ")"
        if path in TARGETS:
            return f"]({to_root}{TARGETS[path]}{anchor})"
        raise ValueError(f"{docname}: the site has no page for {path}")

    source[0] = _LINK.sub(target, source[0])


def setup(app: Any) -> dict[str, bool]:
    """Register the replacement."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
