"""Serialize the functions and arguments of Parsl's calls.

Parsl wraps every function in ``wrap_error``, so that a process that unpickles the function imports all of
Parsl. This module unwraps the function; :mod:`parsl_flux_bulk.protocol.serialize` transfers exceptions
instead.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parsl.app.errors import wrap_error
from parsl.serialize import facade
from parsl.serialize.concretes import DillCallableSerializer, DillSerializer
from parsl.serialize.errors import SerializationError

from parsl_flux_bulk.errors import NotSerializable
from parsl_flux_bulk.protocol import serialize
from parsl_flux_bulk.scheduler.task import Function

_WRAP_ERROR_CODE = wrap_error(lambda: None).__code__


class CallNotSerializable(NotSerializable, SerializationError):
    """A call cannot be serialized. Also a SerializationError, which Parsl's users expect."""

    def __init__(self, message: str) -> None:
        NotSerializable.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


def unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside Parsl's ``wrap_error``, or the function itself if it is not wrapped."""
    if getattr(function, "__code__", None) is _WRAP_ERROR_CODE:
        wrapped: Callable[..., Any] = function.__wrapped__  # type: ignore[attr-defined]
        return wrapped
    return function


class FunctionTable:
    """Serialize each function once for as long as the function lives.

    A function is assumed to be immutable, as in Parsl's serializer.

    Parameters
    ----------
    replacement : callable
        Returns what is serialized in place of a function; by default, the function itself.
    """

    def __init__(
        self, replacement: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    ) -> None:
        self._replacement = replacement
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._known: dict[int, tuple[weakref.ref[Any], Function]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, function: Callable[..., Any]) -> Function:
        """Return the serialized function for a function that Parsl passes to an executor.

        Raises
        ------
        CallNotSerializable
        """
        function = unwrap(function)
        key = id(function)
        known = self._known.get(key)
        if known is not None and known[0]() is function:
            return known[1]
        made = self._serialize(self._replacement(function))
        try:
            reference = weakref.ref(function, _forgetter(self._known, key))
        except TypeError:
            return made
        with self._lock:
            self._known[key] = (reference, made)
        return made

    def _serialize(self, function: Callable[..., Any]) -> Function:
        name = getattr(function, "__name__", None) or repr(function)
        try:
            if _users_own(facade.methods_for_code, DillCallableSerializer):
                payload = serialize.PARSL + facade.serialize(function)
            else:
                payload = serialize.dumps(function)
        except (Exception, SystemExit) as error:
            raise CallNotSerializable(
                f"the function {name} cannot be serialized ({type(error).__name__}: {error}); "
                "import modules and open files inside the function's body"
            ) from error
        return Function(next(self._ids), name, payload)


def _forgetter(known: dict[int, Any], key: int) -> Callable[[object], None]:
    # A separate function, so that the callback refers to the dictionary and not to the table.
    def forget(_: object) -> None:
        known.pop(key, None)

    return forget


def serialize_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Serialize the arguments of a call of the function `name`.

    Raises
    ------
    CallNotSerializable
        Names the arguments that cannot be serialized.
    """
    try:
        if _users_own(facade.methods_for_data, DillSerializer):
            positional = facade.serialize(args, buffer_threshold=_NO_WARNING)
            named = facade.serialize(kwargs, buffer_threshold=_NO_WARNING)
            return serialize.join_parsl(positional, named)
        return serialize.dumps((args, kwargs))
    except (Exception, SystemExit) as error:
        culprits = ", ".join(_unserializable(args, kwargs)) or "arguments"
        raise CallNotSerializable(
            f"the call of {name} cannot be serialized: {culprits} ({type(error).__name__}: {error}); "
            "pass plain data, or the path of a file"
        ) from error


_NO_WARNING = 1 << 62


def _users_own(methods: Mapping[bytes, Any], default: type) -> bool:
    """Return whether the user registered a serializer with Parsl's facade, which prefers the first."""
    return type(next(iter(methods.values()))) is not default or len(methods) > 1


def _unserializable(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    named = [(f"argument {index}", value) for index, value in enumerate(args, 1)]
    named += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    culprits = []
    for label, value in named:
        try:
            serialize.dumps(value)
        except (Exception, SystemExit):
            culprits.append(f"{label}, of type {type(value).__qualname__}")
    return culprits
