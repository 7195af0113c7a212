"""Pickle functions by value where pickle, which works by reference, would not find them again.

Pickle writes the module and the name of a function. The name of every Parsl app leads to the app object
instead. Such a function is written by value: code, closure, defaults, hints, and the module whose globals it
uses. What lives in ``__main__`` and uses more than modules takes its globals along: :mod:`.script_globals`
does that. Importing cloudpickle costs a worker as much as most of its other imports together.
"""

from __future__ import annotations

import builtins
import io
import marshal
import pickle
import sys
from types import CellType, CodeType, FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TypeAlias

    Global: TypeAlias = tuple[dict[str, Any], str, Any]
    """A global variable: its namespace, name and value."""

PROTOCOL = 5


class TakesItsGlobals(Exception):
    """An object lives in ``__main__``, or in a module that no worker can import."""


class Pickler(pickle.Pickler):
    """Pickle functions by value where their name does not lead to them.

    `dump` raises for objects that only cloudpickle can serialize.

    Attributes
    ----------
    used : sequence of Global
        Variables of ``__main__`` that the pickled functions use.
    """

    used: Sequence[Global] = ()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return NotImplemented if is_importable(obj) else reduce_function(obj, self)
        if issubclass(kind, type) or kind.__name__ in PICKLED_BY_NAME:
            if getattr(obj, "__module__", None) == "__main__":
                raise TakesItsGlobals
        elif kind.__module__ == "__main__":
            raise TakesItsGlobals
        elif issubclass(kind, BaseException):
            return reduce_exception(obj)
        return NotImplemented


def reduce_exception(error: BaseException) -> Any:
    """Return how to rebuild an exception without ``__init__``; NotImplemented for what pickle rebuilds well.

    By default pickle calls the class with ``args``, which fails if ``__init__`` takes other arguments.
    """
    kind = type(error)
    default = kind.__reduce__ is BaseException.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__
    if not default or not isinstance(kind.__init__, FunctionType):
        return NotImplemented
    from parsl_flux_bulk.errors import rebuild

    return rebuild, (kind, error.args, error.__dict__)


PICKLED_BY_NAME = frozenset(
    ("NewType", "ParamSpec", "TypeAliasType", "TypeVar", "TypeVarTuple", "_lru_cache_wrapper")
)
"""Types of ``typing`` and ``functools`` whose instances pickle as their module and name."""


def is_importable(obj: Any) -> bool:
    """Return whether a worker finds a function, class or other object by its module and name."""
    module = getattr(obj, "__module__", None)
    name: Any = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", "")
    found: Any = None if module == "__main__" else sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj


def globals_are_importable(function: FunctionType) -> bool:
    """Return whether a worker can import the module whose globals a function uses."""
    # Not __module__, which functools.wraps sets to the module of the wrapped function.
    module = function.__globals__.get("__name__", "")
    return module != "__main__" and _is_namespace_of(function, module)


def _is_namespace_of(function: FunctionType, module: str) -> bool:
    return getattr(sys.modules.get(module), "__dict__", None) is function.__globals__


def reduce_function(
    function: FunctionType,
    pickler: Any,
    hints: Callable[[FunctionType], dict[str, Any]] | None = None,
) -> Any:
    """Reduce a function; what pickle's ``reducer_override`` returns.

    Parameters
    ----------
    pickler : Pickler or CloudPickler
        Its `used` receives the global variables of ``__main__`` that the function uses.
    hints : callable, optional
        Packs the annotations of the function; `pack_hints` by default.

    Raises
    ------
    TakesItsGlobals
    """
    module = function.__globals__.get("__name__", "")
    modules = _modules_used(function)
    if not globals_are_importable(function):
        if modules is None or not _is_namespace_of(function, module):
            raise TakesItsGlobals
        namespace = function.__globals__
        variables = [(namespace, name, namespace[name]) for name in modules if name in namespace]
        pickler.used = [*pickler.used, *variables]
    made_from = (
        sys.version_info[:2],
        marshal.dumps(function.__code__),
        module,
        function.__globals__.get("__package__"),
        modules,
        function.__name__,
    )
    cells = function.__closure__ or ()
    state = (
        function.__defaults__,
        {n: cell.cell_contents for n, cell in enumerate(cells) if not is_empty(cell)},
        {name: getattr(function, name) for name in _ATTRIBUTES if getattr(function, name, None) is not None},
        (hints or pack_hints)(function),
        function.__dict__,
    )
    # In two steps, because a function may refer to itself.
    return _make_function, made_from, state, None, None, _set_state


_ATTRIBUTES = ("__module__", "__qualname__", "__doc__", "__kwdefaults__", "__type_params__")


def is_empty(cell: CellType) -> bool:
    """Return whether the variable of a closure has no value yet."""
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


# -- type hints -------------------------------------------------------------------------------


def pack_hints(function: FunctionType) -> dict[str, Any]:
    """Return a function's annotations; those with a type that is imported by name as bytes.

    A worker that cannot import such a type runs the function without the hint.

    Raises
    ------
    TakesItsGlobals
        A hint lives in ``__main__``.
    """
    return {name: pack_hint(hint) for name, hint in hints_of(function).items()}


def hints_of(obj: Any) -> dict[str, Any]:
    """Return the annotations of a function or class; none if evaluating them fails."""
    try:
        return getattr(obj, "__annotations__", {})
    except Exception:  # evaluated here from Python 3.14 on
        return {}


def pack_hint(hint: Any) -> Any:
    """Return a hint to be pickled in the place of a hint."""
    if hint is None or isinstance(hint, str) or getattr(hint, "__module__", "") == "builtins":
        return hint
    buffer = io.BytesIO()
    try:
        Pickler(buffer, PROTOCOL).dump(hint)
    except Exception:
        raise TakesItsGlobals from None
    return buffer.getvalue()


def unpack_hints(packed: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations that a worker can import."""
    found = {}
    for name, hint in packed.items():
        if isinstance(hint, bytes):
            if b"parsl" in hint and "parsl" not in sys.modules:
                continue  # a hint is no reason to import all of Parsl
            try:
                hint = pickle.loads(hint)
            except Exception:
                continue
        found[name] = hint
    return found


def names_in_hints(obj: Any, namespace: dict[str, Any]) -> Iterator[str]:
    """Yield the global names in those annotations of an object that are strings, or contain strings."""
    import re

    for hint in hints_of(obj).values():
        if not isinstance(hint, type):
            yield from (name for name in re.findall(r"[^\W\d]\w*", str(hint)) if name in namespace)


# -- globals ----------------------------------------------------------------------------------


_DYNAMIC_LOOKUPS = ("__import__", "eval", "exec", "globals")
"""Built-in functions that can reach any global name."""


def _modules_used(function: FunctionType) -> dict[str, str] | None:
    """Map the global names that a function uses to modules; None if a name refers to anything else.

    Most apps import what they need in their body. A worker can then run them without importing the module
    that defines them, which imports Parsl.
    """
    import builtins
    import dis

    namespace = function.__globals__
    used: dict[str, str] = {}
    names: list[str] = []
    attributes: set[str] = set()
    if namespace.get("__name__") == "__main__":
        names += names_in_hints(function, namespace)
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for instruction in dis.get_instructions(code):
            if "ATTR" in instruction.opname or instruction.opname == "LOAD_METHOD":
                attributes.add(instruction.argval)
            elif instruction.opname == "LOAD_GLOBAL":
                names.append(instruction.argval)
            # The function sets a global, or defines a class, whose body looks names up in other ways.
            elif "GLOBAL" in instruction.opname or instruction.opname in ("LOAD_NAME", "STORE_NAME"):
                return None
    for name in names:
        value = namespace.get(name)
        if isinstance(value, ModuleType) and value.__name__ != "__main__" and is_loaded(value):
            used[name] = value.__name__
            used.update(_submodules_used(value.__name__, attributes))
        elif name in namespace or name in _DYNAMIC_LOOKUPS or not hasattr(builtins, name):
            return None
    return used


def _submodules_used(package: str, attributes: set[str]) -> dict[str, str]:
    """Return the loaded submodules of a package that attributes may refer to, as after ``import xml.dom``."""
    prefix = package + "."
    found = [name for name in list(sys.modules) if name.startswith(prefix)]
    return {name: name for name in found if attributes.issuperset(name[len(prefix) :].split("."))}


def names_in_classes(function: FunctionType) -> Iterator[str]:
    """Yield the global names that the bodies of classes use which a function defines."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if not code.co_flags & _OPTIMIZED:
            yield from (name for name in code.co_names if name in function.__globals__)


_OPTIMIZED = 1
"""``inspect.CO_OPTIMIZED``: the flag of code whose local variables the compiler knows, as in functions."""


def is_loaded(module: ModuleType) -> bool:
    """Return whether importing a module's name leads to the module."""
    return sys.modules.get(module.__name__) is module


def _globals_of(module: str, package: str | None, used: dict[str, str] | None) -> dict[str, Any]:
    if used is None or (module in sys.modules and module != "__main__"):
        if module not in sys.modules:
            __import__(module)
        return vars(sys.modules[module])
    # Relative imports read __package__; imports from C, such as that of `strptime`, read __builtins__.
    found: dict[str, Any] = {"__name__": module, "__package__": package, "__builtins__": builtins}
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
    name: str,
) -> FunctionType:
    """Make a function with the globals of `module` in this process.

    If the function uses no globals but modules (`used`), only those modules are imported.
    """
    if version != sys.version_info[:2]:
        sent, here = (".".join(map(str, numbers)) for numbers in (version, sys.version_info[:2]))
        raise ValueError(f"the function {name} was serialized by Python {sent}, and this is Python {here}")
    loaded: CodeType = marshal.loads(code)
    cells = tuple(CellType() for _ in loaded.co_freevars) or None
    return FunctionType(loaded, _globals_of(module, package, used), name, None, cells)


def _set_state(
    function: FunctionType,
    state: tuple[tuple[Any, ...] | None, dict[int, Any], dict[str, Any], dict[str, Any], dict[str, Any]],
) -> None:
    function.__defaults__, contents, attributes, packed_hints, namespace = state
    for index, value in contents.items():
        (function.__closure__ or ())[index].cell_contents = value
    for attribute, value in attributes.items():
        setattr(function, attribute, value)
    if packed_hints:
        function.__annotations__ = unpack_hints(packed_hints)
    function.__dict__.update(namespace)
