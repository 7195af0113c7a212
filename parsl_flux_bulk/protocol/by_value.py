"""Pickle functions by value where pickle, which works by reference, would not find them again.

Pickle writes the module and the name of a function. The name of every Parsl app leads to the app object
instead. Such a function is written by value: code, closure, defaults, and the module whose globals it uses.
Dill does the same, but importing dill costs a worker more than all its other imports together.
"""

from __future__ import annotations

import marshal
import pickle
import sys
from types import CellType, CodeType, FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _ClassOfMain(Exception):
    """Pickle would write a class of ``__main__`` by reference, which a worker cannot resolve."""


class _UnimportableGlobals(Exception):
    """The globals of a function belong to no module that a worker can import."""


class Pickler(pickle.Pickler):
    """Pickle functions by value where their name does not lead to them.

    `dump` raises for objects that only dill can serialize.
    """

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return NotImplemented if _is_importable(obj) else _reduce_function(obj)
        if issubclass(kind, type) and obj.__module__ == "__main__":
            raise _ClassOfMain
        return NotImplemented


class ResultPickler(Pickler):
    """Pickle what a worker sends back: classes of ``__main__`` both by reference and by value.

    The user's script has the original class, and ``except MyError`` or ``isinstance`` there must see the
    original, not a copy.
    """

    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), type) and obj.__module__ == "__main__":
            import dill

            return _find_class, (obj.__qualname__, dill.dumps(obj))
        return super().reducer_override(obj)


def _resolve(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _find_class(qualname: str, by_value: bytes) -> Any:
    found = _resolve("__main__", qualname)
    if isinstance(found, type):
        return found
    import dill

    return dill.loads(by_value)


def _is_importable(function: FunctionType) -> bool:
    module = function.__module__
    return module != "__main__" and _resolve(module, function.__qualname__) is function


def _reduce_function(function: FunctionType) -> Any:
    # Not __module__, which functools.wraps sets to the module of the wrapped function.
    module = function.__globals__.get("__name__", "")
    if getattr(sys.modules.get(module), "__dict__", None) is not function.__globals__:
        raise _UnimportableGlobals
    cells = function.__closure__
    state = (
        sys.version_info[:2],
        marshal.dumps(function.__code__),
        module,
        function.__globals__.get("__package__"),
        _modules_used(function),
        function.__defaults__,
        None if cells is None else tuple(cell.cell_contents for cell in cells),
        {name: getattr(function, name) for name in _ATTRIBUTES},
        function.__dict__,
    )
    return _make_function, state


_ATTRIBUTES = ("__module__", "__name__", "__qualname__", "__doc__", "__kwdefaults__")

_DYNAMIC_LOOKUPS = ("__import__", "eval", "exec", "globals")
"""Built-in functions that can reach any global name."""


def _modules_used(function: FunctionType) -> dict[str, str] | None:
    """Map the global names that a function uses to modules; None if a name refers to anything else.

    Most apps import what they need in their body. A worker can then run them without importing the module
    that defines them, which imports Parsl.
    """
    import builtins
    import dis

    used: dict[str, str] = {}
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname != "LOAD_GLOBAL":
                # The function sets a global, or defines a class, whose body looks names up in other ways.
                if "GLOBAL" in instruction.opname or instruction.opname in ("LOAD_NAME", "STORE_NAME"):
                    return None
                continue
            name = instruction.argval
            value = function.__globals__.get(name)
            if isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value:
                used[name] = value.__name__
            elif name in function.__globals__ or name in _DYNAMIC_LOOKUPS or not hasattr(builtins, name):
                return None
    return used


def _globals_of(module: str, package: str | None, used: dict[str, str] | None) -> dict[str, Any]:
    if module in sys.modules or used is None:
        if module not in sys.modules:
            __import__(module)
        return vars(sys.modules[module])
    # Relative imports read __package__.
    found: dict[str, Any] = {"__name__": module, "__package__": package}
    for name, imported in used.items():
        __import__(imported)
        found[name] = sys.modules[imported]
    return found


def _make_function(
    version: tuple[int, int],
    code: bytes,
    module: str,
    package: str | None,
    used: dict[str, str] | None,
    defaults: tuple[Any, ...] | None,
    contents: tuple[Any, ...] | None,
    attributes: dict[str, Any],
    namespace: dict[str, Any],
) -> FunctionType:
    """Rebuild a function with the globals of `module` in this process.

    If the function uses no globals but modules (`used`), only those modules are imported.
    """
    name = attributes["__name__"]
    if version != sys.version_info[:2]:
        sent, here = (".".join(map(str, numbers)) for numbers in (version, sys.version_info[:2]))
        raise ValueError(f"the function {name} was serialized by Python {sent}, and this is Python {here}")
    cells = None if contents is None else tuple(map(CellType, contents))
    function = FunctionType(marshal.loads(code), _globals_of(module, package, used), name, defaults, cells)
    for attribute, value in attributes.items():
        setattr(function, attribute, value)
    function.__dict__.update(namespace)
    return function
