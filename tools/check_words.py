"""Fail if a tracked file uses a word that is retired; ``retired_words.txt`` lists them.

A word counts wherever it stands by itself or is a part of an identifier, in the singular or the plural:
``old`` is found in ``Old``, ``olds``, ``_old_of`` and ``newOld``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LIST = PROJECT / "tools" / "retired_words.txt"
UNCHECKED = {"LICENSE", str(LIST.relative_to(PROJECT))}

_ALLOWANCE = re.compile(r"(\S+) allows (.+?): .+")
_RETIREMENT = re.compile(r"(.+?): (.+)")
_BEFORE_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def read_list(text: str) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Return the terms to use by retired words, and the pairs of a path and a word that it may use."""
    terms: dict[str, str] = {}
    allowed: set[tuple[str, str]] = set()
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if found := _ALLOWANCE.fullmatch(line):
            allowed.add((found[1], found[2]))
        elif found := _RETIREMENT.fullmatch(line):
            terms[found[1]] = found[2]
        else:
            raise SystemExit(f"{LIST}: neither 'word: term' nor 'path allows word: reason': {line!r}")
    for path, word in allowed:
        if word not in terms or not (PROJECT / path).exists():
            raise SystemExit(f"{LIST}: {path!r} allows {word!r}: no such file, or the word is not retired")
    return terms, allowed


def uses(text: str, words: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the number of the line, the word and the line for each use of a word."""
    choice = "|".join(f"({re.escape(word)})".replace(r"\ ", "[ _]?") for word in words)
    pattern = re.compile(f"(?<![a-z])(?:{choice})s?(?![a-z])", re.IGNORECASE)
    names = list(words)
    for number, line in enumerate(text.splitlines(), 1):
        for match in pattern.finditer(_BEFORE_CAPITAL.sub("_", line)):
            assert match.lastindex is not None
            yield number, names[match.lastindex - 1], line.strip()


def main() -> int:
    """Print every use; return 1 if there is any."""
    terms, allowed = read_list(LIST.read_text(encoding="utf-8"))
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    count = 0
    for path in listed.stdout.split("\0"):
        if not path or path in UNCHECKED or path.endswith(".png") or not (PROJECT / path).exists():
            continue
        for number, word, line in uses((PROJECT / path).read_text(encoding="utf-8"), terms):
            if (path, word) not in allowed:
                print(f"{path}:{number}: {word!r} is retired, use {terms[word]!r}: {line}")
                count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
