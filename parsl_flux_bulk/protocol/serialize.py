"""How a call and its outcome are serialised; used on both sides, standard library only.

A *function* travels apart from its calls, so that it travels once. Every payload begins with one
byte that says how to read the rest:

====  =====================================================================================
``P``  pickle, protocol 5; functions that it could not find by their name are carried whole
``D``  dill, for what that cannot carry: classes of ``__main__``, recursive closures
``F``  Parsl's serializer facade, used only if the user registered a serializer with it
====  =====================================================================================

An *outcome* is one byte, and what it says:

====  =====================================================================================
``R``  a result: a payload as above
``E``  an exception that the task raised: the pickled chain of :func:`_describe`
``N``  something could not be serialised or deserialised in the worker: a pickled sentence
``X``  the task called ``sys.exit``: its exit status and what it said, pickled
====  =====================================================================================

The worker must not import Parsl, nor dill before a payload needs it: on a node full of workers,
every import is thousands of file-system calls.
"""

from __future__ import annotations

import io
import marshal
import pickle
import sys
from types import CellType, CodeType, FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

PICKLE, DILL, FACADE = b"P", b"D", b"F"
RESULT, RAISED, NOT_SERIALIZABLE, EXITED = b"R", b"E", b"N", b"X"

_PROTOCOL = 5

_CHAIN_LIMIT = 50
"""Causes and contexts of one exception that travel: a retry loop may chain thousands."""

_FRAMES_LIMIT = 200
"""Frames of one traceback that travel, the first and the last: endless recursion leaves a thousand."""


class _InMain(Exception):
    """A class of ``__main__`` was met, which pickle would only name, not carry."""


class _GlobalsOfItsOwn(Exception):
    """A function was met whose globals are not those of a module that the other side can import."""


class _Pickler(pickle.Pickler):
    """Pickle that carries functions whole where their name does not lead to them.

    That is so for every Parsl app, whose name leads to what decorated it. Dill does the same, but to
    import it costs a worker more than everything else together.
    """

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return NotImplemented if _found_by_name(obj) else _reduce_function(obj)
        if issubclass(kind, type) and obj.__module__ == "__main__":
            raise _InMain
        return NotImplemented


class _ResultPickler(_Pickler):
    """For the way back: a class of the user's ``__main__`` is named *and* carried.

    The user's script has the real class, and ``except MyError`` or ``isinstance`` there must see
    that one, not a copy of a copy.
    """

    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), type) and obj.__module__ == "__main__":
            import dill

            return _class_of_main, (obj.__qualname__, dill.dumps(obj))
        return super().reducer_override(obj)


def _found_by_name(function: FunctionType) -> bool:
    if function.__module__ == "__main__":
        return False
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _reduce_function(function: FunctionType) -> Any:
    # Not __module__, which functools.wraps sets to that of the function inside.
    home = function.__globals__.get("__name__", "")
    if getattr(sys.modules.get(home), "__dict__", None) is not function.__globals__:
        raise _GlobalsOfItsOwn
    cells = function.__closure__
    state = (
        sys.version_info[:2],
        marshal.dumps(function.__code__),
        home,
        function.__globals__.get("__package__"),
        _modules_used(function),
        function.__module__,
        function.__name__,
        function.__qualname__,
        function.__doc__,
        function.__defaults__,
        function.__kwdefaults__,
        None if cells is None else tuple(cell.cell_contents for cell in cells),
        function.__dict__,
    )
    return _make_function, state


_LOOKS_AROUND = ("__import__", "eval", "exec", "globals")


def _modules_used(function: FunctionType) -> dict[str, str] | None:
    """Return the modules that all global names of a function stand for, or None if some are anything else.

    Most apps import what they need in their body. Then nobody needs the module that defines them, which
    imports Parsl.
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
                # A global is set, or a class made, whose body looks names up in yet other ways.
                if "GLOBAL" in instruction.opname or instruction.opname in ("LOAD_NAME", "STORE_NAME"):
                    return None
                continue
            name = instruction.argval
            value = function.__globals__.get(name)
            if isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value:
                used[name] = value.__name__
            elif name in function.__globals__ or name in _LOOKS_AROUND or not hasattr(builtins, name):
                return None
    return used


def _globals_here(home: str, package: str | None, used: dict[str, str] | None) -> dict[str, Any]:
    """The globals for a function of the module `home` that needs no more of it than other modules."""
    if home in sys.modules or used is None:
        if home not in sys.modules:
            __import__(home)
        return vars(sys.modules[home])
    # Relative imports ask for the package.
    found: dict[str, Any] = {"__name__": home, "__package__": package}
    for name, module in used.items():
        __import__(module)
        found[name] = sys.modules[module]
    return found


def _make_function(
    version: tuple[int, int],
    code: bytes,
    home: str,
    package: str | None,
    used: dict[str, str] | None,
    module: str,
    name: str,
    qualname: str,
    doc: str | None,
    defaults: tuple[Any, ...] | None,
    kwdefaults: dict[str, Any] | None,
    contents: tuple[Any, ...] | None,
    attributes: dict[str, Any],
) -> FunctionType:
    """Make a function again; its globals are those of the module `home` here, as with dill.

    Unless it uses nothing of them but other modules: then only those are imported.
    """
    if version != sys.version_info[:2]:
        here = ".".join(map(str, sys.version_info[:2]))
        raise ValueError(
            f"the function {name} comes from Python {'.'.join(map(str, version))}, and this is {here}"
        )
    cells = None if contents is None else tuple(map(CellType, contents))
    function = FunctionType(marshal.loads(code), _globals_here(home, package, used), name, defaults, cells)
    function.__kwdefaults__ = kwdefaults
    function.__module__, function.__qualname__, function.__doc__ = module, qualname, doc
    function.__dict__.update(attributes)
    return function


def _class_of_main(qualname: str, carried: bytes) -> Any:
    found: Any = sys.modules["__main__"]
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type):
        return found
    import dill

    return dill.loads(carried)


def dumps(obj: object, pickler: type[pickle.Pickler] = _Pickler) -> bytes:
    """Serialise with pickle where it can carry the object, else with dill.

    Raises
    ------
    Exception
        Whatever dill raises for what neither can carry.
    """
    buffer = io.BytesIO()
    buffer.write(PICKLE)
    try:
        pickler(buffer, _PROTOCOL).dump(obj)
    except Exception:
        import dill

        body: bytes = dill.dumps(obj, protocol=_PROTOCOL)
        return DILL + body
    return buffer.getvalue()


def loads(payload: bytes | memoryview) -> Any:
    """Read what `dumps` wrote."""
    kind, body = bytes(payload[:1]), memoryview(payload)[1:]
    if kind == PICKLE:
        return pickle.loads(body)
    if kind == DILL:
        import dill

        return dill.loads(bytes(body))
    if kind == FACADE:
        from parsl.serialize import deserialize

        return deserialize(bytes(body))
    raise ValueError(f"unknown payload kind {kind!r}; expected one of P, D, F")


# -- in the worker ----------------------------------------------------------------------------


def load_function(payload: bytes | memoryview) -> Callable[..., Any]:
    """Read a function; raises whatever its deserialisation raises."""
    function: Callable[..., Any] = loads(payload)
    return function


def load_call(call: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read a call's arguments."""
    if call[:1] == FACADE:
        size = int.from_bytes(call[1:9], "little")
        return loads(FACADE + bytes(call[9 : 9 + size])), loads(FACADE + bytes(call[9 + size :]))
    args, kwargs = loads(call)
    return args, kwargs


def run(function: Callable[..., Any], call: bytes | memoryview) -> bytes:
    """Make a call and return its outcome; raises nothing that the call raises."""
    try:
        args, kwargs = load_call(call)
    except Exception as error:
        return _unreadable("arguments", error)
    try:
        result = function(*args, **kwargs)
    except SystemExit as error:
        return EXITED + pickle.dumps(_exit_status(error.code))
    except BaseException as error:
        return raised(error)
    try:
        return RESULT + dumps(result, _ResultPickler)
    except Exception as error:
        kind = f"{type(result).__module__}.{type(result).__qualname__}"
        return NOT_SERIALIZABLE + pickle.dumps(
            f"the result, of type {kind}, cannot be serialised ({type(error).__name__}: {error}); "
            "return plain data, or write it to a file and return the path"
        )


def function_failure(error: BaseException) -> bytes:
    """The outcome of every call of a function that could not be deserialised."""
    return _unreadable("function", error)


def _unreadable(what: str, error: BaseException) -> bytes:
    return NOT_SERIALIZABLE + pickle.dumps(
        f"the {what} cannot be deserialised in the worker ({type(error).__name__}: {error}); modules that "
        "the call needs must be importable there"
    )


def raised(error: BaseException) -> bytes:
    """The outcome of a call that raised; the frame of `run` itself is left out."""
    traceback = error.__traceback__
    return RAISED + pickle.dumps(_describe(error, traceback.tb_next if traceback else None, set()))


def _exit_status(code: object) -> tuple[int, str]:
    """The status that a process would exit with, and what it would print."""
    if code is None:
        return 0, ""
    return (int(code), "") if isinstance(code, int) else (1, _text_of(code))


def _describe(error: BaseException, traceback: TracebackType | None, seen: set[int]) -> dict[str, Any]:
    """Describe an exception and its causes in plain data, beside its own pickle."""
    seen.add(id(error))
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__", "")
        frames.append((code.co_filename, code.co_name, traceback.tb_lineno, module))
        traceback = traceback.tb_next
    del frames[_FRAMES_LIMIT // 2 : -_FRAMES_LIMIT // 2]
    linked: dict[str, Any] = {}
    for link in ("__cause__", "__context__"):
        other = getattr(error, link)
        if other is not None and id(other) not in seen and len(seen) < _CHAIN_LIMIT:
            linked[link] = _describe(other, other.__traceback__, seen)
    return {
        "pickled": _pickled(error),
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "text": _text_of(error),
        "frames": frames,
        "linked": linked,
        "suppress": error.__suppress_context__,
    }


def _pickled(error: BaseException) -> bytes | None:
    """Pickle an exception so that it can certainly be read again, or return None."""
    for candidate in (error, _WithoutInit(error)):
        try:
            pickled = dumps(candidate, _ResultPickler)
            loads(pickled)
        except Exception:
            continue
        return pickled
    return None


class _WithoutInit:
    """Pickles as an exception that is rebuilt without calling its ``__init__``.

    The default way calls it with ``args``, which fails for every class whose ``__init__`` takes
    something else than it hands on.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _rebuild_without_init, (type(self.error), self.error.args, self.error.__dict__)


def _rebuild_without_init(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _text_of(said: object) -> str:
    try:
        return str(said)
    except Exception:
        return "(its own text cannot be made)"


# -- in the executor --------------------------------------------------------------------------


def is_failure(outcome: bytes | memoryview) -> bool:
    """Whether an outcome is anything but a result."""
    return outcome[:1] != RESULT


def read_outcome(outcome: bytes) -> tuple[Any, BaseException | None]:
    """Read an outcome.

    Returns
    -------
    (result, None) or (None, exception)
        NotSerializable, RemoteError and TaskCrashed tell of what is not the task's own exception.
    """
    kind, body = outcome[:1], memoryview(outcome)[1:]
    try:
        if kind == RESULT:
            return loads(body), None
        if kind == RAISED:
            return None, _rebuild(pickle.loads(body))
    except BaseException as error:  # the user's own code ran, and this thread serves every task
        from parsl_flux_bulk.errors import NotSerializable

        what = "result" if kind == RESULT else "exception"
        lost = NotSerializable(f"the {what} cannot be deserialised here ({type(error).__name__}: {error})")
        lost.__cause__ = error
        return None, lost
    return None, _complaint(kind, pickle.loads(body))


def _complaint(kind: bytes, said: Any) -> BaseException:
    from parsl_flux_bulk.errors import NotSerializable, TaskCrashed

    if kind == NOT_SERIALIZABLE:
        return NotSerializable(said)
    status, text = said
    call = f"sys.exit({text!r}), so exit status {status}," if text else f"sys.exit({status})"
    return TaskCrashed(f"the task called {call} instead of returning", exit_code=status)


def _rebuild(record: dict[str, Any]) -> BaseException:
    error = _unpickled(record)
    for link, other in record["linked"].items():
        setattr(error, link, _rebuild(other))
    # Setting __cause__ sets this too; what the task said counts.
    error.__suppress_context__ = record["suppress"]
    return error.with_traceback(_traceback(record["frames"]))


def _unpickled(record: dict[str, Any]) -> BaseException:
    from parsl_flux_bulk.errors import RemoteError

    why = "it cannot be pickled"
    if record["pickled"] is not None:
        try:
            error = loads(record["pickled"])
        except Exception as failure:
            why = f"{type(failure).__name__}: {failure}"
        else:
            if isinstance(error, Exception):
                return error
            why = (
                "only subclasses of Exception are raised here"
                if isinstance(error, BaseException)
                else "it is none"
            )
    lines = [f'  File "{file}", line {line}, in {name}' for file, name, line, _ in record["frames"]]
    return RemoteError(
        f"{record['type']}: {record['text']} (this exception cannot be rebuilt here: {why})",
        type_name=record["type"],
        traceback="\n".join(lines),
    )


def _traceback(frames: list[tuple[str, str, int, str]]) -> TracebackType | None:
    from tblib import Traceback

    described: dict[str, Any] | None = None
    for file, name, line, module in reversed(frames):
        described = {
            "tb_frame": {
                "f_globals": {"__name__": module, "__file__": file},
                "f_code": {"co_filename": file, "co_name": name},
                "f_lineno": line,
            },
            "tb_lineno": line,
            "tb_next": described,
        }
    if described is None:
        return None
    traceback: TracebackType = Traceback.from_dict(described).as_traceback()
    return traceback
