"""The code blocks of the documentation, and how they run.

Every fenced block names its language. Blocks of `CODE` run, each in turn in one directory, unless the line
before the block is a comment that says why not. These comments are known::

    <!-- not run: needs a cluster with Slurm -->     the block does not run, for this reason
    <!-- needs: flux -->                             the block runs where there is Flux
    <!-- needs: monitoring -->                       the block runs where there is parsl[monitoring]
    <!-- file: campaign.py -->                       the block is saved under this name
    <!-- continues -->                               the Python block runs after the Python block before it
    <!-- output -->                                  what the block before prints; see `matches`
    <!-- output: in any order -->                    the same lines, in any order
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import helpers

CODE = ("python", "sh")

PAGES = [*sorted(helpers.PROJECT.glob("*.md")), *sorted((helpers.PROJECT / "docs").rglob("*.md"))]

KEYS = {"not run": CODE, "needs": CODE, "file": None, "continues": ("python",), "output": ("text",)}
"""The comments, and the languages of the blocks that may have each; None is any."""

_COMMENT = re.compile(r" *<!-- ([a-z ]+?)(?:: (.+))? -->")
_FENCE = re.compile(r"( *)(```+)(.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: number of its first line, language, text, and the comments before it."""

    line: int
    language: str
    text: str
    comments: dict[str, str]

    @property
    def runs(self) -> bool:
        return self.language in CODE and "not run" not in self.comments and "file" not in self.comments


def name_of(page: Path) -> str:
    return page.relative_to(helpers.PROJECT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return parse(page.read_text(encoding="utf-8"))


def parse(markdown: str) -> list[Block]:
    """Return the fenced blocks of a text, in order."""
    blocks: list[Block] = []
    comments: dict[str, str] = {}
    lines = enumerate(markdown.splitlines(), 1)
    for number, line in lines:
        if fence := _FENCE.fullmatch(line):
            indent, ticks, language = fence.groups()
            text = []
            for _, inner in lines:
                if inner.strip() == ticks:
                    break
                text.append(inner.removeprefix(indent) + "\n")
            blocks.append(Block(number, language, "".join(text), comments))
            comments = {}
        elif comment := _COMMENT.fullmatch(line):
            comments = {**comments, comment[1]: comment[2] or ""}
        else:
            comments = {}
    return blocks


def run_page(page: Path, directory: Path, **variables: str) -> None:
    """Run the blocks of a page; the test fails if one fails, or prints other than the page says."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join(filter(None, sys.path))
    run_blocks(
        page, blocks_of(page), directory, {**os.environ, "PATH": path, "PYTHONPATH": modules, **variables}
    )


_BETWEEN = "-- the next block --\n"
"""What a script of several blocks prints between two of them."""


def run_blocks(
    page: Path, blocks: list[Block], directory: Path, environment: dict[str, str], bound: float = 240.0
) -> None:
    """Run blocks of a page in a directory, each for at most `bound` seconds.

    Python blocks that continue each other run as one script, unless the directory changes in between.
    """

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=bound
        )
        assert done.returncode == 0, f"{where}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    output = ""
    sources: list[str] = []
    outputs: list[str] = []
    for number, block in enumerate(blocks):
        where = f"{name_of(page)}:{block.line}"
        if "file" in block.comments:
            (directory / block.comments["file"]).write_text(block.text, encoding="utf-8")
        if "output" in block.comments:
            in_order = block.comments["output"] != "in any order"
            assert matches(block.text, output, in_order=in_order), f"{where}: printed\n{output}"
        if not block.runs or _lacks(block.comments.get("needs")):
            continue
        if block.language == "sh":
            output = run("bash", "-e", "-c", block.text)
            continue
        if not outputs:
            if "continues" not in block.comments:
                sources = []
            before = len(sources)
            sources += [block.text, *_continuations(blocks[number + 1 :])]
            script = f"print(end={_BETWEEN!r}, flush=True)\n".join(sources)
            (directory / "block.py").write_text(script, encoding="utf-8")
            outputs = run(sys.executable, "block.py").split(_BETWEEN)[before:]
        output = outputs.pop(0)


def _continuations(blocks: list[Block]) -> list[str]:
    """Return the texts of the Python blocks that continue the one before, up to any other that matters."""
    texts = []
    for block in blocks:
        if "continues" in block.comments and block.runs and not _lacks(block.comments.get("needs")):
            texts.append(block.text)
        elif block.runs or "file" in block.comments:
            break
    return texts


def _lacks(need: str | None) -> bool:
    missing = {None: False, "flux": helpers.flux_missing(), "monitoring": find_spec("sqlalchemy") is None}
    return bool(missing[need])


def matches(expected: str, output: str, *, in_order: bool = True) -> bool:
    """Whether an output is as a page has it, where ``...`` is any text, and a decimal number is any other."""
    if not in_order:
        expected, output = ("\n".join(sorted(text.splitlines())) for text in (expected, output))
    pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*?")
    pattern = re.sub(r"\d+\\\.\d+", r"\\d+\\.\\d+", pattern)
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None
