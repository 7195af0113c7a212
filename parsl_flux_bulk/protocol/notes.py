"""Notes on exceptions (PEP 678), also on Python 3.10, which does not show them yet but carries them."""

from __future__ import annotations


def add_note(error: BaseException, note: str) -> None:
    """Add a line to what a traceback shows of an exception; its type and text stay as they are."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        setattr(error, "__notes__", [*getattr(error, "__notes__", []), note])  # noqa: B010
