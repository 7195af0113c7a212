"""Pickle by value what lives in ``__main__``, with the globals that it uses, by cloudpickle.

This module adds to cloudpickle: objects that pickle by their name alone (cached functions, ``NewType``),
hints that are strings or cannot travel, and classes that are the script's own when they return.
Functions of importable modules use the worker's globals (:mod:`.by_value`).
"""

from __future__ import annotations

import enum
import functools
import io
import pickle
import sys
import typing
import uuid
import weakref
from types import FunctionType
from typing import TYPE_CHECKING, Any

import cloudpickle

from parsl_flux_bulk.protocol import by_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickle functions and classes by value.

    Parameters
    ----------
    with_hints : bool
        Whether functions keep hints of types that travel by value.
    result : bool
        Whether the reader may have the classes already: those of a result are the script's own there.

    Attributes
    ----------
    used : sequence of Global
        Variables of ``__main__`` that the pickled functions use.
    """

    def __init__(self, buffer: io.BytesIO, with_hints: bool = True, result: bool = False) -> None:
        super().__init__(buffer, by_value.PROTOCOL)
        self.used: Sequence[by_value.Global] = ()
        self._with_hints = with_hints
        self._result = result

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return self._reduce_function(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        if kind.__name__ in _REDUCERS and not by_value.is_importable(obj):
            return _make_once, (_identity(obj), *_REDUCERS[kind.__name__](obj))
        if (
            issubclass(kind, BaseException)
            and (reduced := by_value.reduce_exception(obj)) is not NotImplemented
        ):
            return reduced
        if kind is functools.cached_property:  # has a lock before Python 3.12
            return functools.cached_property, (obj.func,), {"attrname": obj.attrname, "__doc__": obj.__doc__}
        if kind is weakref.WeakKeyDictionary:  # in functools.singledispatch
            return weakref.WeakKeyDictionary, (dict(obj),)
        return super().reducer_override(obj)

    def _reduce_class(self, cls: type) -> Any:
        reduced = super().reducer_override(cls)
        if not isinstance(reduced, tuple) or len(reduced) != 6:
            return reduced
        identity = _identity(cls)
        if self._result:
            return _find_class, (identity, _class_by_value(cls))
        make, made_from, state, *rest, set_state = reduced
        members = {}
        if issubclass(cls, enum.Enum):  # cloudpickle makes members from their values, without __init__
            members = {member.name: vars(member) for member in cls}
        in_hints = {}
        if self._with_hints and cls.__module__ == "__main__":
            main = vars(sys.modules["__main__"])
            in_hints = {name: main[name] for name in by_value.names_in_hints(cls, main)}
        setter = functools.partial(_set_class_state, set_state, identity)
        return make, made_from, (state, members, in_hints), *rest, setter

    def _reduce_function(self, function: FunctionType) -> Any:
        if by_value.globals_are_importable(function):
            if by_value.is_importable(function):
                return NotImplemented
            return by_value.reduce_function(function, self, self._pack_hints)
        reduced = super().reducer_override(function)
        if reduced is NotImplemented:
            return reduced
        make, made_from, (namespace, slots), *rest = reduced
        used = slots["__globals__"]
        used.update((name, function.__globals__[name]) for name in by_value.names_in_classes(function))
        self.used = [*self.used, *((function.__globals__, name, value) for name, value in used.items())]
        if self._with_hints:
            names = by_value.names_in_hints(function, function.__globals__)
            used.update((name, function.__globals__[name]) for name in names)
        slots["__annotations__"] = _Hints(self._pack_hints(function))
        if getattr(function, "__type_params__", ()):
            slots["__type_params__"] = function.__type_params__  # type: ignore[attr-defined]
        return make, made_from, (namespace, slots), *rest

    def _pack_hints(self, function: FunctionType) -> dict[str, Any]:
        packed = {}
        for name, hint in by_value.hints_of(function).items():
            try:
                packed[name] = by_value.pack_hint(hint)
            except by_value.TakesItsGlobals:
                if self._with_hints:
                    packed[name] = hint
        return packed


class _Hints:
    """Annotations, of which a worker drops those that it cannot import."""

    def __init__(self, packed: dict[str, Any]) -> None:
        self._packed = packed

    def __reduce__(self) -> Any:
        return by_value.unpack_hints, (self._packed,)


def globals_of(function: FunctionType) -> dict[str, Any]:
    """Return the global variables that a function of ``__main__`` uses, by name."""
    reduced = cloudpickle.Pickler(io.BytesIO()).reducer_override(function)
    found: dict[str, Any] = {} if reduced is NotImplemented else reduced[2][1]["__globals__"]
    return found


# -- objects that stay the same object when they travel and return ----------------------------

_identities: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_objects: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def _identity(obj: Any) -> str:
    found = _identities.get(obj)
    if found is None:
        found = uuid.uuid4().hex
        _remember(found, obj)
    return found


def _remember(identity: str, obj: Any) -> None:
    _identities[obj] = identity
    _objects[identity] = obj


def _make_once(identity: str, make: Callable[..., Any], *made_from: Any) -> Any:
    found = _objects.get(identity)
    if found is None:
        found = make(*made_from)
        _remember(identity, found)
    return found


def _set_class_state(set_state: Callable[[type, Any], Any], identity: str, cls: Any, state: Any) -> None:
    state, members, in_hints = state
    set_state(cls, state)
    for name, namespace in members.items():
        vars(cls[name]).update(namespace)
    _remember(identity, cls)
    # typing.get_type_hints looks names in the hints of a class up in the module of the class.
    main = vars(sys.modules["__main__"])
    _lent.update(in_hints.keys() - main.keys())
    main.update((name, in_hints[name]) for name in _lent & in_hints.keys())


_lent: set[str] = set()
"""Names in this process's ``__main__`` that came from the script."""


def _find_class(identity: str, pickled: bytes) -> Any:
    found = _objects.get(identity)
    return pickle.loads(pickled) if found is None else found


def _class_by_value(cls: type) -> bytes:
    buffer = io.BytesIO()
    CloudPickler(buffer).dump(cls)
    return buffer.getvalue()


# -- objects that pickle by their name alone --------------------------------------------------


def _reduce_cache(cached: Any) -> Any:
    return _make_cache, cached.__wrapped__, cached.cache_parameters(), vars(cached)


def _make_cache(function: Callable[..., Any], parameters: dict[str, Any], namespace: dict[str, Any]) -> Any:
    cached = functools.lru_cache(**parameters)(function)
    vars(cached).update(namespace)
    return cached


def _reduce_new_type(new_type: Any) -> Any:
    return _make_type, "NewType", (new_type.__name__, new_type.__supertype__), {}, vars(new_type)


def _reduce_parameter(parameter: Any) -> Any:
    names = ("bound", "covariant", "contravariant")
    options = {name: getattr(parameter, f"__{name}__") for name in names if hasattr(parameter, f"__{name}__")}
    return _make_type, type(parameter).__name__, (parameter.__name__,), options, {}


def _reduce_alias(alias: Any) -> Any:
    options = {"type_params": alias.__type_params__}
    return _make_type, "TypeAliasType", (alias.__name__, alias.__value__), options, {}


def _make_type(kind: str, args: tuple[Any, ...], options: dict[str, Any], namespace: dict[str, Any]) -> Any:
    made = getattr(typing, kind)(*args, **options)
    if namespace:
        vars(made).update(namespace)
    elif kind != "TypeAliasType":
        made.__module__ = "__main__"
    return made


_REDUCERS: dict[str, Callable[[Any], Any]] = {
    "_lru_cache_wrapper": _reduce_cache,
    "NewType": _reduce_new_type,
    "ParamSpec": _reduce_parameter,
    "TypeVarTuple": _reduce_parameter,
    "TypeAliasType": _reduce_alias,
}
