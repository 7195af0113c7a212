"""Apply environment rules, as in ``flux run --env``, to the environment of a job.

Rules apply in order to a copy of the submitter's environment:

=============== ======================================================================================
``-PATTERN``    remove the variables that match
``NAME=VALUE``  set one; ``$VAR`` and ``${VAR}`` stand for the value so far, ``$$`` for a dollar sign
``NAME={{x}}``  set one from a mustache template, which Flux's job shell fills in when the job starts
``PATTERN``     take matching variables back from the submitter's environment
``^FILE``       read more rules from a file, one a line
=============== ======================================================================================

A pattern is a shell glob, or a regular expression if it begins with ``/``; an expression has to
match from the beginning of a name, but not to its end.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import string
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Environment(NamedTuple):
    """The environment of a job.

    Attributes
    ----------
    variables : dict of str to str
        The jobspec's ``attributes.system.environment``.
    templates : dict of str to str
        Its shell option ``env-expand``: variables that the job shell fills in.
    """

    variables: dict[str, str]
    templates: dict[str, str]


def filter_environment(rules: Iterable[str], environ: Mapping[str, str]) -> Environment:
    """Apply `rules` to a copy of `environ`.

    Raises
    ------
    ValueError
        A variable that a rule refers to is not set, a pattern is not a regular expression, or a
        file cannot be read.

    See also
    --------
    flux-run(1), *ENV RULES*
    """
    result = Environment(dict(environ), {})
    inherited = dict(environ)
    for rule in rules:
        _apply(rule, result, inherited)
    return result


def _apply(rule: str, result: Environment, environ: dict[str, str]) -> None:
    variables, templates = result
    name, equals, value = rule.partition("=")
    if rule.startswith("-"):
        pattern = _pattern(rule[1:])
        for key in [key for key in variables if pattern.match(key)]:
            del variables[key]
    elif rule.startswith("^"):
        for line in _lines(rule[1:], environ):
            _apply(line, result, environ)
    elif not equals:
        pattern = _pattern(rule)
        for key, setting in environ.items():
            if pattern.match(key):
                variables.setdefault(key, setting)
    elif "{{" in value:
        templates[name] = value
    else:
        try:
            variables[name] = string.Template(value).substitute({**environ, **variables})
        except KeyError as error:
            raise ValueError(f"{rule!r}: the variable {error.args[0]} is not set") from None
        except ValueError:
            raise ValueError(f"{rule!r}: {_DOLLAR}") from None


_DOLLAR = "'$' must be followed by a variable's name, or be doubled"


@functools.lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text[1:].rstrip("/") if text.startswith("/") else fnmatch.translate(text))
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None


def _lines(path: str, environ: dict[str, str]) -> list[str]:
    if path.startswith("~/") and "HOME" in environ:
        path = environ["HOME"] + path[1:]
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read environment rules: {error}") from None


def check_rule(rule: str) -> None:
    """Check a rule as far as possible without an environment.

    Raises
    ------
    ValueError
        Says what is wrong with it.
    """
    name, equals, value = rule.partition("=")
    if not rule or "\0" in rule:
        raise ValueError("an environment rule must not be empty; see flux-run(1), ENV RULES")
    if rule.startswith("^"):
        if rule == "^":
            raise ValueError("'^' must be followed by the name of a file with rules")
    elif rule.startswith("-"):
        _pattern(rule[1:])
    elif not equals:
        _pattern(rule)
    elif not name:
        raise ValueError(f"{rule!r} has no name before '='")
    elif "{{" not in value:
        try:
            string.Template(value).substitute(_Anything())
        except ValueError:
            raise ValueError(f"{rule!r}: {_DOLLAR}") from None


class _Anything(dict[str, str]):
    """Has a value for every key."""

    def __missing__(self, key: str) -> str:
        return ""
