"""Parse job constraints: from the syntax of ``flux run --requires`` (RFC 35) to objects (RFC 31).

The grouping of terms follows Flux's own parser, so that an expression selects the same nodes here
as there: ``and`` binds tighter than ``or``, ``not`` tighter than both, and a term that follows
another without an operator is joined by *and* only after all operators to its left were applied,
which is why ``a|b c`` means ``(a|b) and c``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

Constraint: TypeAlias = dict[str, list[Any]]
"""An RFC 31 object, such as ``{"and": [{"properties": ["gpu"]}, {"hostlist": ["node[1-4]"]}]}``."""

OPERATORS = ("properties", "hostlist", "ranks")
"""Operators of a term; ``host``, ``hosts`` and ``rank`` are other names of the last two."""

_SYNONYMS = {"host": "hostlist", "hosts": "hostlist", "rank": "ranks"}
_TOKEN = re.compile(
    r"""\s*(?: (?P<negate>-) | (?P<not>not\b) | (?P<and>&&?|and\b) | (?P<or>\|\|?|or\b)
      | (?P<open>\() | (?P<close>\)) | (?P<term>[^()|&\s"']+) | '(?P<single>[^']*)' | "(?P<double>[^"]*)"
      | (?P<unclosed>["']) )""",
    re.VERBOSE,
)
_MAX_ID = 2**31 - 1
_MAX_HOSTS = 2**20


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


# How tightly an operator binds to the left of a term, and to the right of it. A term that follows
# another without an operator counts as *and* to the left, and binds loosest to the right.
_BINDS = {"or": 1, "and": 2, "not": 3}
_ARRIVES = {"or": 1, "and": 2, "not": 3, "negate": 4, "term": 0, "open": 0}


def parse_constraint(text: str) -> Constraint:
    """Translate a ``--requires`` expression into an RFC 31 object.

    Raises
    ------
    ValueError
        Says what is wrong, and at which position.

    Examples
    --------
    >>> parse_constraint("gpu host:node[1-4]")
    {'and': [{'properties': ['gpu']}, {'hostlist': ['node[1-4]']}]}
    """
    parser = _Parser(_tokens(text), text)
    constraint = parser.expression()
    parser.expect("end")
    check_constraint(constraint)
    return constraint


def check_constraint(constraint: object) -> None:
    """Check an RFC 31 object as Flux does when a job is submitted.

    Raises
    ------
    ValueError
        Says what is wrong and what would be right.
    """
    if not isinstance(constraint, Mapping):
        raise ValueError(f"a constraint must be a mapping of operator to list of values, not {constraint!r}")
    for op, values in constraint.items():
        if not isinstance(values, (list, tuple)):
            raise ValueError(f"the values of constraint operator {op!r} must be a list, not {values!r}")
        if op in ("and", "or", "not"):
            for value in values:
                check_constraint(value)
        elif op in OPERATORS:
            for value in values:
                _check_value(op, value)
        else:
            raise ValueError(
                f"unknown constraint operator {op!r}; there are {', '.join(OPERATORS)}, and, or, not"
            )


def _check_value(op: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"a value of constraint operator {op!r} must be a string, not {value!r}")
    if op == "properties":
        if found := set(value) & set("&'\"`|()"):
            raise ValueError(f"property {value!r} must not contain {' '.join(sorted(found))}")
    elif op == "hostlist":
        if not _is_hostlist(value):
            raise ValueError(f"{value!r} is not a hostlist (RFC 29), such as 'node[1-4],login1'")
    elif not _is_idset(value):
        raise ValueError(f"{value!r} is not a set of ranks in ascending order (RFC 22), such as '0,4-7'")


def _is_idset(text: str) -> bool:
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    last = -1
    for element in filter(None, text.split(",")):
        match = re.fullmatch(r"(0|[1-9][0-9]*)(?:-(0|[1-9][0-9]*))?", element, re.ASCII)
        if match is None:
            return False
        low = int(match[1])
        high = low if match[2] is None else int(match[2])
        if low <= last or high > _MAX_ID or (match[2] is not None and high <= low):
            return False
        last = high
    return True


def _is_hostlist(text: str) -> bool:
    # As in Flux, the text after the first pair of brackets of a host is an ordinary suffix.
    for host in _split_hosts(text):
        _, opening, rest = host.partition("[")
        numbers, closing, _ = rest.partition("]")
        if not opening and "]" in host:
            return False
        if opening and not (closing and all(map(_is_host_range, numbers.split(",")))):
            return False
    return True


def _split_hosts(text: str) -> list[str]:
    """Split at commas and blanks outside of brackets."""
    hosts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if depth == 0 and char in ", \t":
            hosts.append("")
        else:
            hosts[-1] += char
    return hosts


def _is_host_range(element: str) -> bool:
    match = re.fullmatch(r"\s*([0-9]+)(?:-([0-9]*))?", element, re.ASCII)
    if match is None:
        return False
    low, high = int(match[1]), int(match[2] or match[1])
    return 0 <= high - low < _MAX_HOSTS


def _tokens(text: str) -> list[_Token]:
    """Split an expression; ``op:`` and the word after it, quoted or not, are one term."""
    tokens: list[_Token] = []
    prefix = ""
    for match in _TOKEN.finditer(text):  # every character but a blank starts a token
        kind = str(match.lastgroup)
        value, start = match[kind], match.start(kind)
        if kind == "unclosed":
            raise ValueError(f"the quote {value} at position {start} is not closed")
        if kind in ("single", "double"):
            if not value:
                continue
            kind = "term"
        if kind != "term":
            tokens.append(_Token(kind, value, start))
        elif value.endswith(":") and not prefix:
            prefix = value
        else:
            tokens.append(_Token("term", prefix + value, start))
            prefix = ""
    if prefix:
        raise ValueError(f"a value is missing after {prefix!r}")
    tokens.append(_Token("end", "", len(text)))
    return tokens


class _Parser:
    def __init__(self, tokens: list[_Token], text: str) -> None:
        self._tokens = tokens
        self._text = text
        self._at = 0

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def expect(self, kind: str) -> None:
        token = self._next()
        if token.kind != kind:
            raise self._unexpected(token)

    def _unexpected(self, token: _Token) -> ValueError:
        if token.kind == "end":
            return ValueError("it ends where a term, such as 'host:node1' or a property, is expected")
        return ValueError(f"{token.text!r} at position {token.position} is not expected there")

    def expression(self, bound: int = 0, right: bool = False) -> Constraint:
        """Parse what binds tighter than the operator to the left, whose strength is `bound`."""
        left = self._operand()
        while True:
            token = self._tokens[self._at]
            if token.kind in ("end", "close"):
                return left
            arrives = _ARRIVES[token.kind]
            if bound and (arrives < bound or (arrives == bound and not right)):
                return left
            if token.kind in ("or", "and"):
                self._at += 1
            joined_by = "or" if token.kind == "or" else "and"
            operand = self.expression(_BINDS[joined_by])
            left = _join_or(left, operand) if joined_by == "or" else _join_and(left, operand)

    def _operand(self) -> Constraint:
        token = self._next()
        if token.kind == "not":
            return {"not": [self.expression(_BINDS["not"], right=True)]}
        if token.kind == "negate":
            token = self._next()
            if token.kind != "term":
                raise self._unexpected(token)
            return {"not": [_term(token)]}
        if token.kind == "open":
            inside = self.expression()
            closing = self._next()
            if closing.kind != "close":
                raise ValueError(f"the parenthesis at position {token.position} is not closed")
            return inside
        if token.kind == "term":
            return _term(token)
        raise self._unexpected(token)


def _term(token: _Token) -> Constraint:
    name, colon, value = token.text.partition(":")
    if not colon:
        name, value = "properties", token.text
    name = _SYNONYMS.get(name, name)
    return {name: list(value.split(",") if name == "properties" else [value])}


def _join_and(left: Constraint, right: Constraint) -> Constraint:
    if "and" in left:
        return {"and": [*left["and"], right]}
    if "properties" in left and "properties" in right:
        return {"properties": left["properties"] + right["properties"]}
    return {"and": [left, right]}


def _join_or(left: Constraint, right: Constraint) -> Constraint:
    if "or" in left:
        return {"or": [*left["or"], right]}
    return {"or": [left, right]}
