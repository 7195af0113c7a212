"""Compute what setup.cfg cannot: the README as a package index shows it.

A package index has neither the repository's files nor its pictures, so relative links become names of files,
which the source distribution has, and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

PICTURE = r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*"
LINK = r"\[([^]]*)\]\((?!https?:)([^)#]*)[^)]*\)"


def for_package_index(readme: str) -> str:
    """Return the text without pictures of the repository, and with names of its files in place of links."""
    return re.sub(LINK, lambda link: f"{link[1]} (`{link[2]}`)", re.sub(PICTURE, "", readme))


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(long_description=for_package_index(readme), long_description_content_type="text/markdown")
