"""Read from the source which modules of the package use which others.

A use is an import at any level of a module, for the type checker or in a function too; an import inside a
string, such as a program for ``python -c``; a string that is the name of a module; and a path made of
``__file__`` that leads to a module, such as a program that is started by path.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]

_IMPORT_IN_TEXT = re.compile(r"(?:from (\S+) )?import ([\w., ]+)")


class Package:
    """The modules of a package, by their dotted names below it; a folder's own is its ``__init__``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.trees: dict[str, ast.Module] = {}
        self._paths: dict[str, Path] = {}
        for path in sorted(directory.rglob("*.py")):
            name = ".".join(path.relative_to(directory).with_suffix("").parts)
            self._paths[name] = path
            self.trees[name] = ast.parse(path.read_text(encoding="utf-8"))

    def lines_of(self, name: str) -> int:
        return len(self._paths[name].read_text(encoding="utf-8").splitlines())

    def uses(self) -> Graph:
        """Which modules each module uses."""
        return {name: set(self._used_by(name)) - {name} for name in self.trees}

    def outside(self, name: str) -> set[str]:
        """Top-level names of everything that a module imports from elsewhere."""
        found = {dotted.split(".")[0] for dotted in _imported(self.trees[name])}
        return found - {self.directory.name}

    def _used_by(self, name: str) -> Iterator[str]:
        tree = self.trees[name]
        dotted = list(_imported(tree))
        for text in _texts(tree):
            dotted.append(text)
            for module, names in _IMPORT_IN_TEXT.findall(text):
                dotted += [
                    f"{module}.{part.strip()}" if module else part.strip() for part in names.split(",")
                ]
        for each in dotted:
            if (module := self._module(each)) is not None:
                yield module
        by_path = {path: module for module, path in self._paths.items()}
        for path in _paths_from_file(tree, self._paths[name]):
            if path in by_path:
                yield by_path[path]

    def _module(self, dotted: str) -> str | None:
        """The module that a dotted name is, or is a name of; the package alone is none."""
        root, _, below = dotted.partition(".")
        if root != self.directory.name or not below:
            return None
        folder = below.rpartition(".")[0]
        for candidate in (below, f"{below}.__init__", folder, f"{folder}.__init__".lstrip(".")):
            if candidate in self.trees:
                return candidate
        return None


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _texts(tree: ast.Module) -> Iterator[str]:
    """All string constants but docstrings; of an f-string, its constant parts together."""
    parts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            parts.update(id(value) for value in node.values)
            yield "".join(str(v.value) for v in node.values if isinstance(v, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def _paths_from_file(tree: ast.Module, file: Path) -> Iterator[Path]:
    """Values of the expressions that are made of ``__file__``, ``Path``, ``os.path`` and constants."""
    helpers: dict[str, object] = {"Path": Path, "os": os, "str": str}
    paths: dict[str, object] = {"__file__": str(file)}

    def value(node: ast.expr) -> object:
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        if names & paths.keys() and names <= paths.keys() | helpers.keys():
            try:
                return eval(compile(ast.Expression(node), str(file), "eval"), helpers | paths)
            except (AttributeError, TypeError, ValueError, IndexError):
                pass
        return None

    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) if (found := value(statement.value)) is not None:
                paths[name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and isinstance(found := value(node), (str, Path)):
            yield Path(found)


def circles(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Every group of nodes that lead to each other: the strongly connected components of two or more."""
    reached: Graph = {}
    for start in graph:
        seen: set[str] = set()
        unseen = [start]
        while unseen:
            for after in graph.get(unseen.pop(), ()):
                if after not in seen:
                    seen.add(after)
                    unseen.append(after)
        reached[start] = seen
    groups = {frozenset(other for other in reached[node] if node in reached[other]) for node in graph}
    return sorted((set(group) for group in groups if len(group) > 1), key=sorted)


def inside(folder: str, graph: Graph) -> Graph:
    """Which entries of a folder use which others of it; an entry is a module or a folder."""
    prefix = f"{folder}." if folder else ""

    def entry(name: str) -> str:
        return prefix + name.removeprefix(prefix).split(".")[0]

    found: Graph = {}
    for name, used in graph.items():
        if name.startswith(prefix):
            uses = found.setdefault(entry(name), set())
            uses |= {entry(other) for other in used if other.startswith(prefix)} - {entry(name)}
    return found
