"""Serialize the functions and arguments of Parsl's calls.

Parsl wraps every function in ``wrap_error``, so that a process that unpickles the function imports all of
Parsl. This module unwraps the function; :mod:`parsl_flux_bulk.protocol.serialize` transfers exceptions
instead. It also takes the function out of Parsl's ``timeout``, which Parsl makes anew for each call with a
walltime; the walltime travels with the call, and :mod:`parsl_flux_bulk.worker.walltime` applies it.
"""

from __future__ import annotations

import itertools
import os
import site
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from parsl.app.errors import wrap_error
from parsl.app.python import timeout
from parsl.dataflow.dependency_resolvers import deep_traverse_to_gather
from parsl.serialize import facade
from parsl.serialize.concretes import DillCallableSerializer, DillSerializer
from parsl.serialize.errors import SerializationError

from parsl_flux_bulk.errors import NotSerializable
from parsl_flux_bulk.executor.not_serializable import culprit
from parsl_flux_bulk.jobspec.duration import check_seconds
from parsl_flux_bulk.protocol import serialize
from parsl_flux_bulk.scheduler.task import Function

if TYPE_CHECKING:
    from parsl_flux_bulk.protocol.by_value import Global

_TIMEOUT_CODE: CodeType = timeout(lambda: None, 1).__code__

_SECONDS = _TIMEOUT_CODE.co_freevars.index("seconds")

_WRAP_ERROR_CODE = wrap_error(lambda: None).__code__


class CallNotSerializable(NotSerializable, SerializationError):
    """A call cannot be serialized. Also a SerializationError, which Parsl's users expect."""

    def __init__(self, message: str) -> None:
        NotSerializable.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


def unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside Parsl's wrappers, or the function itself if it is not wrapped."""
    code = getattr(function, "__code__", None)
    if code is _WRAP_ERROR_CODE or code is _TIMEOUT_CODE:
        return unwrap(function.__wrapped__)  # type: ignore[attr-defined]
    return function


def walltime_of(function: Callable[..., Any]) -> float | None:
    """Return the walltime in seconds that Parsl has put around a function, None if there is none.

    Raises
    ------
    ValueError
        The walltime is not a usable number.
    """
    if getattr(function, "__code__", None) is not _TIMEOUT_CODE:
        return None
    wrapper: Any = function
    return check_seconds("walltime", wrapper.__closure__[_SECONDS].cell_contents)


class FunctionTable:
    """Serialize each function once for as long as the function and the globals that it uses stay the same.

    A function of an importable module is assumed to be immutable, as in Parsl's serializer. A function of
    ``__main__`` takes its globals along: it is serialized anew when one of their names was bound to another
    object, as by a notebook cell that is run again, or when the content of a small one was changed.

    Parameters
    ----------
    replacement : callable
        Returns what is serialized in place of a function; by default, the function itself.
    initializer : (callable, tuple) or None
        Called in each worker before its first function, with the arguments.
    """

    def __init__(
        self,
        replacement: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
        initializer: tuple[Callable[..., object], tuple[Any, ...]] | None = None,
    ) -> None:
        self._replacement = replacement
        self._initializer = initializer
        self._initializer_payload: bytes | None = None
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._known: dict[int, tuple[weakref.ref[Any], Function, _Used | None]] = {}
        self._sys_path: list[str] | None = None
        self._first_entries: tuple[str, ...] = ()
        self._prefix = b""

    def __len__(self) -> int:
        return len(self._known)

    def follow_sys_path(self, entries: tuple[str, ...]) -> None:
        """Send what is added to ``sys.path`` from now on along with functions; workers have `entries`."""
        self._first_entries = entries
        self._sys_path = list(sys.path)

    def get(self, function: Callable[..., Any]) -> Function:
        """Return the serialized function for a function that Parsl passes to an executor.

        Raises
        ------
        CallNotSerializable
        """
        if sys.path != self._sys_path and self._sys_path is not None:
            self._extend_sys_path()
        function = unwrap(function)
        key = id(function)
        known = self._known.get(key)
        before = None
        if known is not None and known[0]() is function:
            used = known[2]
            if used is None:
                return known[1]
            if used.is_unchanged():
                if not used.is_mutable:
                    return known[1]
                before = known[1]
        made, used = self._serialize(self._replacement(function), before)
        if made is before:
            return made
        try:
            reference = weakref.ref(function, _forgetter(self._known, key))
        except TypeError:
            return made
        with self._lock:
            self._known[key] = (reference, made, used)
        return made

    def _extend_sys_path(self) -> None:
        with self._lock:
            self._sys_path = list(sys.path)
            added = [entry for entry in own_sys_path() if entry not in self._first_entries]
            prefix = serialize.with_sys_path(added, b"") if added else b""
            if prefix != self._prefix:
                self._prefix = prefix
                self._known.clear()

    def _serialize(
        self, function: Callable[..., Any], before: Function | None
    ) -> tuple[Function, _Used | None]:
        name = getattr(function, "__name__", None) or repr(function)
        variables: list[Global] = []
        try:
            if _users_own(facade.methods_for_code, DillCallableSerializer):
                payload = serialize.PARSL + facade.serialize(function)
            else:
                payload = serialize.dumps(function, used=variables)
        except (Exception, SystemExit) as error:
            cause = culprit(function) or "a value that it refers to"
            raise CallNotSerializable(
                f"the function {name} cannot be serialized: {cause} ({type(error).__name__}: {error}); "
                "make it, import it or open it inside the function's body, or pass plain data"
            ) from error
        if self._initializer is not None:
            payload = serialize.with_initializer(self._serialized_initializer(self._initializer), payload)
        payload = self._prefix + payload
        if before is not None and before.payload == payload:
            return before, None
        used = _Used(variables, len(payload)) if variables else None
        return Function(next(self._ids), name, payload), used

    def _serialized_initializer(self, initializer: tuple[Callable[..., object], tuple[Any, ...]]) -> bytes:
        if self._initializer_payload is None:
            try:
                self._initializer_payload = serialize.dumps(initializer)
            except (Exception, SystemExit) as error:
                cause = culprit(initializer) or "a value that it refers to"
                raise CallNotSerializable(
                    f"the initializer cannot be serialized: {cause} ({type(error).__name__}: {error})"
                ) from error
        return self._initializer_payload


class _Used:
    """The global variables that a serialized function uses."""

    __slots__ = ("_variables", "is_mutable")

    def __init__(self, variables: list[Global], size: int) -> None:
        self._variables = variables
        self.is_mutable = size < _SMALL and any(not isinstance(value, _FIXED) for _, _, value in variables)
        """Whether a content may change, which only serializing the function anew can tell."""

    def is_unchanged(self) -> bool:
        """Return whether each name is bound to the object that was serialized."""
        return all(namespace.get(name) is value for namespace, name, value in self._variables)


_SMALL = 1 << 16
"""Bytes up to which a function with mutable globals is serialized for each call, to see changes (~0.2 ms)."""

_FIXED = (FunctionType, BuiltinFunctionType, ModuleType, type, type(None), int, float, complex, str, bytes)
"""Types of globals whose content is not looked at again."""


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
        return serialize.dumps_call(args, kwargs)
    except (Exception, SystemExit) as error:
        culprits = ", ".join(_unserializable(args, kwargs)) or "arguments"
        raise CallNotSerializable(
            f"the call of {name} cannot be serialized: {culprits} ({type(error).__name__}: {error}); "
            + (
                _WITHOUT_FUTURES
                if _hold_futures([*args, *kwargs.values()])
                else "pass plain data, or the path of a file"
            )
        ) from error


_WITHOUT_FUTURES = (
    "it holds futures: pass them as inputs=[...], for whose results Parsl waits, or set "
    "Config(dependency_resolver=DEEP_DEPENDENCY_RESOLVER); without Parsl, pass the result() of each"
)


def _hold_futures(values: list[Any]) -> bool:
    try:
        return bool(deep_traverse_to_gather(values))
    except RecursionError:  # a list that contains itself
        return False


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
            cause = culprit(value)
            if cause:
                culprits[-1] += f", because of {cause}"
    return culprits


def own_sys_path() -> tuple[str, ...]:
    """Return the entries of ``sys.path`` that are not the interpreter's own, such as the script's directory.

    With them, workers can import the modules beside the user's script, and those of a zipapp.
    """
    libraries = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    standard = os.path.dirname(os.__file__) + os.sep
    entries = (os.path.abspath(entry) for entry in sys.path)
    return tuple(
        entry
        for entry in entries
        if entry not in libraries and not entry.startswith(standard) and os.path.exists(entry)
    )
