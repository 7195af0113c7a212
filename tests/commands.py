"""Functions of bash apps for the tests. Workers import this module, so: standard library only."""

from __future__ import annotations

from typing import Any

from apps import Planned


def command(text: str, **_: Any) -> str:
    return text


def formatted(template: str, *args: Any, **_: Any) -> str:
    return template.format(*args)


def of_inputs(inputs: Any = (), outputs: Any = (), **_: Any) -> str:
    return f"cat {inputs[0]} > {outputs[0]}"


def forgetful(**_: Any) -> None:
    "echo but return nothing"


def attribute_error(**_: Any) -> str:
    return None.strip()  # type: ignore[attr-defined,no-any-return]


def own_error(**_: Any) -> str:
    raise Planned("while composing")


def own_exit(**_: Any) -> str:
    raise SystemExit(3)
