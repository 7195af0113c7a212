"""Fill inputs into command lines and options, with the templates of flux-bulksubmit(1).

=================================  =================================================================
``{}``, ``{0}``, ``{1}``           an input: the next one within its text, or the one of that list
``{.%}``, ``{1.%}``                the input without its extension
``{./}``, ``{.//}``, ``{./%}``     its file name; its directory; its file name without its extension
``{.NAME}``                        what ``--define NAME=CODE`` makes of the input
``{seq}``, ``{seq1}``              number of the combination of inputs, from 0 and from 1
``{cc}``                           number of the copy
=================================  =================================================================

``{seq}``, ``{seq1}`` and ``{cc}`` take a format, such as ``{seq:04d}``. Left alone are ``{{id}}`` and the
like, which Flux's job shell replaces; a shell's ``${NAME}``; and braces that have no template's form, such as
``{ true; }``. What has the form of a template, and is none, is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

Method: TypeAlias = Callable[[str], object]

_TOKEN = re.compile(
    r"""\{\{.*?\}\}
      | \$\{ (?! (?:seq1?|cc) (?::[^{}]*)? \} ) [A-Za-z_][^{}]* \}
      | (?P<field> \{ (?P<name>[0-9]+|[A-Za-z_]\w*|)
                      (?:\.(?P<method>/%|//|/|%|[A-Za-z_]\w*))?
                      (?::(?P<format>[^{}]*))? \} )""",
    re.VERBOSE,
)

_PATH_PARTS: dict[str, Method] = {
    "%": lambda text: os.path.splitext(text)[0],
    "/": os.path.basename,
    "//": os.path.dirname,
    "/%": lambda text: os.path.basename(os.path.splitext(text)[0]),
}

_NUMBERS = ("seq", "seq1", "cc")

KNOWN = "{}, {0}, {.%}, {./}, {.//}, {./%}, {seq}, {seq1} and {cc}"


class TemplateError(ValueError):
    """A text is not a template, or cannot be filled; the message says why."""


class Values(NamedTuple):
    """What is filled in for one job.

    Attributes
    ----------
    inputs : tuple of str
        One of each input list.
    seq : int
        Number of the combination of inputs, from 0.
    cc : int or None
        Number of the copy.
    """

    inputs: tuple[str, ...] = ()
    seq: int = 0
    cc: int | None = None


class _Field(NamedTuple):
    name: str
    input: int
    method: Method | None
    format: str

    def fill(self, values: Values) -> list[str]:
        if self.name:
            number = {"seq": values.seq, "seq1": values.seq + 1, "cc": values.cc}[self.name]
            return [format(number, self.format)]
        text = values.inputs[self.input]
        result = text if self.method is None else self.method(text)
        return [str(part) for part in result] if isinstance(result, list) else [str(result)]


class Template:
    """A text with templates in it.

    Parameters
    ----------
    text : str
    where : str
        What the text is, for messages: ``the command``, ``--output``.
    methods : mapping of str to callable
        The methods of ``--define``.

    Attributes
    ----------
    text : str
    names : frozenset of str
        Which of ``seq``, ``seq1`` and ``cc`` are in it, and ``""`` for an input.

    Raises
    ------
    TemplateError
        If part of the text looks like a template, and is none.
    """

    def __init__(self, text: str, where: str, methods: Mapping[str, Method] | None = None) -> None:
        self.text = text
        self.where = where
        self._parts: list[str | _Field] = []
        self._read({**_PATH_PARTS, **(methods or {})})
        fields = [part for part in self._parts if isinstance(part, _Field)]
        self.names = frozenset(field.name for field in fields)
        self._lists = max((field.input + 1 for field in fields if not field.name), default=0)

    def check(self, lists: int, *, copies: bool) -> None:
        """Refuse a template that nothing is there for.

        Parameters
        ----------
        lists : int
            Number of input lists.
        copies : bool
            Whether the copies have numbers.
        """
        if self._lists > lists:
            available = "no input list" if not lists else f"{lists} input list(s), counted from 0"
            raise TemplateError(
                f"{self._here()} needs input {self._lists - 1}, and there is {available}; "
                "'{0}{0}' repeats an input, '{}{}' takes the next one"
            )
        if "cc" in self.names and not copies:
            raise TemplateError(f"{self._here()} has {{cc}}, which needs --cc or --copies; {LITERALLY}")

    def fill(self, values: Values) -> str:
        """Return the text of one job.

        Raises
        ------
        TemplateError
            If a method or a format cannot be applied.
        """
        words = self.words(values)
        if len(words) > 1:
            raise TemplateError(
                f"{self._here()} makes a list of {len(words)} words; only a command takes one"
            )
        return words[0] if words else ""

    def words(self, values: Values) -> list[str]:
        """Return the words that the text becomes: one, unless a method makes a list."""
        done = [""]
        for part in self._parts:
            more = [part] if isinstance(part, str) else self._fill(part, values)
            if not more:  # an empty list leaves out the word, unless other text is in it
                if len(self._parts) == 1:
                    return []
                continue
            done = [*done[:-1], done[-1] + more[0], *more[1:]]
        return done

    def _fill(self, field: _Field, values: Values) -> list[str]:
        try:
            return field.fill(values)
        except Exception as error:
            raise TemplateError(
                f"{self._here()} cannot be filled with {values.inputs!r}: {type(error).__name__}: {error}"
            ) from error

    def _read(self, methods: Mapping[str, Method]) -> None:
        at = following = 0
        numbered = False
        for match in _TOKEN.finditer(self.text):
            if match["field"] is None:
                continue
            name = match["name"]
            if name in _NUMBERS and not match["method"]:
                field = _Field(name, 0, None, match["format"] or "")
            elif name and not name.isdigit():
                raise TemplateError(self._not_one(match["field"]))
            else:
                if match["format"] is not None:
                    raise TemplateError(f"{self._here()}: only {{seq}}, {{seq1}} and {{cc}} take a format")
                method = match["method"]
                if method and method not in methods:
                    raise TemplateError(self._not_one(match["field"]))
                field = _Field("", int(name) if name else following, methods[method] if method else None, "")
                if numbered if not name else following > 0:
                    raise TemplateError(
                        f"{self._here()} mixes {{}} with numbered templates; number all of them"
                    )
                numbered = numbered or bool(name)
                following += not name
            if match.start() > at:
                self._parts.append(self.text[at : match.start()])
            self._parts.append(field)
            at = match.end()
        if at < len(self.text) or not self._parts:
            self._parts.append(self.text[at:])

    def _here(self) -> str:
        return f"{self.text!r} in {self.where}"

    def _not_one(self, field: str) -> str:
        return f"{field!r} in {self.where} is not a template: there are {KNOWN}; {LITERALLY}"


LITERALLY = "--literal takes braces as they are"


def define(definitions: list[str]) -> dict[str, Method]:
    """Return the methods of ``--define NAME=CODE``: Python expressions of the input ``x``.

    Raises
    ------
    TemplateError
        If a definition is not NAME=CODE, or its code is not an expression.
    """
    methods: dict[str, Method] = {}
    for definition in definitions:
        name, equals, code = definition.partition("=")
        if not equals or not name.isidentifier():
            raise TemplateError(
                f"--define must be NAME=CODE, such as \"half='int(x) // 2'\", not {definition!r}"
            )
        try:
            compiled = compile(code.strip(), f"--define {name}", "eval")
        except (SyntaxError, ValueError) as error:
            raise TemplateError(f"--define {name}: {code!r} is not a Python expression: {error}") from error
        methods[name] = lambda x, compiled=compiled: eval(compiled, {"os": os, "re": re}, {"x": x})  # type: ignore[misc]
    return methods
