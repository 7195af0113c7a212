"""Imports go one way, as docs/architecture.md lists them; ``flux`` is imported in one module only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import parsl_flux_bulk

PACKAGE = Path(parsl_flux_bulk.__file__).parent

# A module may import from its own line and from those below it.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"executor", "bulk"},
    {"scheduler"},
    {"pipeline"},
    {"blocks"},
    {"providers"},
    {"instances"},
    {"jobspec"},
    {"worker"},
    {"protocol"},
    {"errors", "version", "__init__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(
        set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("**/modprobe/**/*.py"))
    ):  # Flux runs those
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Every module that is imported, and whether only for the type checker."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in guarded
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in guarded
            if node.module == "parsl_flux_bulk":
                for alias in node.names:
                    yield f"parsl_flux_bulk.{alias.name}", id(node) in guarded


def group(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_module_has_its_place() -> None:
    groups = {Path(name).parts[0].removesuffix(".py") for name, _ in modules()}
    assert groups == set(RANK)


def test_imports_go_down() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        if name != "__init__.py"  # exports lazily what users import from here
        for target, for_types in imported(tree)
        if not for_types and target.split(".")[0] == "parsl_flux_bulk" and group(target) in RANK
        if RANK[group(target)] < RANK[Path(name).parts[0].removesuffix(".py")]
    ]
    assert not wrong


def test_flux_is_imported_in_one_module_only() -> None:
    users = {
        name
        for name, tree in modules()
        for target, _ in imported(tree)
        if target.split(".")[0] in ("flux", "_flux")
    }
    assert users == {"instances/flux/instance.py"}
