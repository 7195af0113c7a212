"""Serialize calls in the executor and outcomes in the worker.

A *function* is sent apart from its calls, once for each manager. The first byte of a payload says how to
read the rest:

====  =====================================================================================
``P``  pickle, protocol 5, with functions by value (:mod:`.by_value`)
``C``  pickle by cloudpickle, for what lives in ``__main__`` (:mod:`.script_globals`)
``S``  directories for ``sys.path``, in JSON, and another payload
``I``  the initializer of a worker process and its arguments, and another payload
``F``  Parsl's serializer facade, used only if the user registered a serializer with Parsl
``W``  only for a call: its walltime, a double in seconds, and another payload
====  =====================================================================================

The first byte of an *outcome* says how the call ended:

====  =====================================================================================
``R``  result: a payload as above
``E``  exception that the task raised: the pickled record of :func:`_describe`
``N``  the worker could not serialize or deserialize something: a pickled message
``X``  the task called ``sys.exit``: the pickled exit status and message
``A``  the app failed as in `app_failure`: the pickled fields of an `AppFailed`
====  =====================================================================================

The worker imports neither Parsl nor cloudpickle before a payload needs it: on a node full of workers, each
import is thousands of file system calls.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys

from parsl_flux_bulk.protocol import frames
from parsl_flux_bulk.protocol.app_failure import AppFailed, AppFailure, DeferredError
from parsl_flux_bulk.protocol.by_value import PROTOCOL, Pickler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Any

    from parsl_flux_bulk.protocol.by_value import Global

PICKLE, CLOUDPICKLE, SYS_PATH, INITIALIZER, PARSL = b"P", b"C", b"S", b"I", b"F"
WALLTIME = b"W"
RESULT, RAISED, NOT_SERIALIZABLE, EXITED, APP_FAILED = b"R", b"E", b"N", b"X", b"A"

_WALLTIME = struct.Struct("<cd")

_PICKLES = PICKLE + CLOUDPICKLE
_SCALARS = frozenset((type(None), bool, int, float))
"""Types that pickle can write without a `Pickler`, which takes longer to make than to use."""

_SCALAR_RESULT = RESULT + PICKLE

_CHAIN_LIMIT = 50
"""Causes and contexts sent with one exception: a retry loop may chain thousands."""

_FRAMES_LIMIT = 200
"""Frames sent of one traceback, the first and the last: endless recursion leaves a thousand."""


def dumps(obj: object, *, result: bool = False, used: list[Global] | None = None) -> bytes:
    """Serialize an object with pickle if possible, else with cloudpickle.

    Parameters
    ----------
    result : bool
        Whether the reader may have the classes of the object already: a result goes back to the script.
    used : list, optional
        Receives the global variables that the functions of ``__main__`` use.

    Raises
    ------
    Exception
        What cloudpickle raises for an object that it cannot serialize either.
    """
    buffer = io.BytesIO()
    buffer.write(PICKLE)
    pickler: Any = Pickler(buffer, PROTOCOL)
    try:
        pickler.dump(obj)
    except Exception:
        from parsl_flux_bulk.protocol.script_globals import CloudPickler

        try:
            buffer = io.BytesIO()
            buffer.write(CLOUDPICKLE)
            pickler = CloudPickler(buffer, result=result)
            pickler.dump(obj)
        except Exception:  # perhaps because of a type hint
            buffer = io.BytesIO()
            buffer.write(CLOUDPICKLE)
            pickler = CloudPickler(buffer, result=result, with_hints=False)
            pickler.dump(obj)
    if used is not None:
        used += pickler.used
    return buffer.getvalue()


def dumps_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Serialize the arguments of a call; raise what `dumps` raises."""
    if not kwargs and _SCALARS.issuperset(map(type, args)):
        return PICKLE + pickle.dumps((args, kwargs), PROTOCOL)
    return dumps((args, kwargs))


def loads(payload: bytes | memoryview) -> Any:
    """Deserialize a payload."""
    body = memoryview(payload)[1:]
    if payload[0] in _PICKLES:
        return pickle.loads(body)
    kind = bytes(payload[:1])
    if kind == SYS_PATH:
        length = int.from_bytes(body[:4], "little")
        import json

        sys.path += [entry for entry in json.loads(bytes(body[4 : 4 + length])) if entry not in sys.path]
        return loads(body[4 + length :])
    if kind == INITIALIZER:
        length = int.from_bytes(body[:8], "little")
        _initialize(body[8 : 8 + length])
        return loads(body[8 + length :])
    if kind == PARSL:
        from parsl.serialize import deserialize

        return deserialize(bytes(body))
    raise ValueError(f"unknown payload kind {kind!r}; expected one of P, C, S, I, F")


def with_sys_path(entries: Sequence[str], payload: bytes) -> bytes:
    """Return a payload that extends ``sys.path`` where it is deserialized."""
    import json

    encoded = json.dumps(entries).encode()
    return SYS_PATH + len(encoded).to_bytes(4, "little") + encoded + payload


def with_initializer(initializer: bytes, payload: bytes) -> bytes:
    """Return a payload before which a process calls an initializer, once."""
    return INITIALIZER + len(initializer).to_bytes(8, "little") + initializer + payload


initialized = False
"""Whether this process, a worker, has called its initializer."""


def _initialize(initializer: memoryview) -> None:
    global initialized
    if initialized:
        return
    try:
        function, args = loads(initializer)
        function(*args)
    except BaseException as error:
        from parsl_flux_bulk.errors import InitializerFailed

        raise InitializerFailed(f"the initializer failed ({type(error).__name__}: {error})") from error
    initialized = True


def with_walltime(seconds: float, call: bytes) -> bytes:
    """Return the payload of a call that must end within `seconds`."""
    return _WALLTIME.pack(WALLTIME, seconds) + call


def split_walltime(call: memoryview) -> tuple[float | None, memoryview]:
    """Return the walltime of a call, None if it has none, and the call without it."""
    if call[0] != WALLTIME[0]:
        return None, call
    return _WALLTIME.unpack_from(call)[1], call[_WALLTIME.size :]


def join_parsl(args: bytes, kwargs: bytes) -> bytes:
    """Return the payload of a call whose arguments Parsl's facade serialized."""
    return PARSL + len(args).to_bytes(8, "little") + args + kwargs


# -- in the worker ----------------------------------------------------------------------------


def run(function: Callable[..., Any], call: bytes | memoryview) -> bytes:
    """Call a function and return the outcome; exceptions of the call are outcomes too."""
    outcome = _run(function, call)
    if len(outcome) > frames.MAX_PAYLOAD:
        outcome = raised(OverflowError(frames.too_long("result", len(outcome))))
    return outcome


def not_deserializable(what: str, error: BaseException) -> bytes:
    """Return the outcome of a call whose function or arguments cannot be deserialized."""
    from parsl_flux_bulk.errors import InitializerFailed

    if isinstance(error, InitializerFailed):
        return raised(error)
    return NOT_SERIALIZABLE + pickle.dumps(
        f"the {what} cannot be deserialized in the worker ({type(error).__name__}: {error}); modules that "
        "the call needs must be importable there"
    )


def _run(function: Callable[..., Any], call: bytes | memoryview) -> bytes:
    try:
        args, kwargs = load_call(call)
    except Exception as error:
        return not_deserializable("arguments", error)
    try:
        result = function(*args, **kwargs)
    except SystemExit as error:
        return EXITED + pickle.dumps(_exit_status(error.code))
    except BaseException as error:
        return raised(error)
    return returned(result)


def returned(result: object) -> bytes:
    """Return the outcome of a call that returned."""
    if type(result) in _SCALARS:
        return _SCALAR_RESULT + pickle.dumps(result, PROTOCOL)
    try:
        return RESULT + dumps(result, result=True)
    except Exception as error:
        kind = f"{type(result).__module__}.{type(result).__qualname__}"
        return NOT_SERIALIZABLE + pickle.dumps(
            f"the result, of type {kind}, cannot be serialized ({type(error).__name__}: {error}); "
            "return plain data, or write it to a file and return the path"
        )


def load_call(call: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Deserialize the arguments of a call."""
    if call[0] == PARSL[0]:
        kwargs_at = 9 + int.from_bytes(call[1:9], "little")
        return loads(PARSL + bytes(call[9:kwargs_at])), loads(PARSL + bytes(call[kwargs_at:]))
    args, kwargs = loads(call)
    return args, kwargs


def app_failed(record: AppFailed) -> bytes:
    """Return the outcome of an app that failed."""
    return APP_FAILED + pickle.dumps(tuple(record))


def raised(error: BaseException) -> bytes:
    """Return the outcome of a call that raised an exception."""
    if isinstance(error, AppFailure):
        return app_failed(error.record)
    traceback = error.__traceback__  # its first frame is _run
    return RAISED + pickle.dumps(_describe(error, traceback.tb_next if traceback else None, set()))


def _exit_status(code: object) -> tuple[int, str]:
    """Return the status that the process would exit with, and the message that it would print."""
    if code is None:
        return 0, ""
    return (int(code), "") if isinstance(code, int) else (1, _safe_str(code))


def _describe(error: BaseException, traceback: TracebackType | None, seen: set[int]) -> dict[str, Any]:
    """Describe an exception and its causes in plain data, beside its own pickle."""
    seen.add(id(error))
    entries = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__", "")
        entries.append((code.co_filename, code.co_name, traceback.tb_lineno, module))
        traceback = traceback.tb_next
    del entries[_FRAMES_LIMIT // 2 : -_FRAMES_LIMIT // 2]
    linked: dict[str, Any] = {}
    for link in ("__cause__", "__context__"):
        other = getattr(error, link)
        if other is not None and id(other) not in seen and len(seen) < _CHAIN_LIMIT:
            linked[link] = _describe(other, other.__traceback__, seen)
    return {
        "pickled": _dump_exception(error),
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "text": _safe_str(error),
        "frames": entries,
        "linked": linked,
        "suppress": error.__suppress_context__,
    }


def _dump_exception(error: BaseException) -> bytes | None:
    """Serialize an exception; None unless the result can be deserialized again."""
    for candidate in (error, _WithoutInit(error)):
        try:
            pickled = dumps(candidate, result=True)
            if not isinstance(candidate, DeferredError):  # whose deserialization imports Parsl
                loads(pickled)
        except Exception:
            continue
        return pickled
    return None


class _WithoutInit:
    """Pickles as an exception that is rebuilt without calling ``__init__``.

    By default pickle calls the class with ``args``, which fails if ``__init__`` takes other arguments.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        from parsl_flux_bulk.errors import rebuild

        return rebuild, (type(self.error), self.error.args, self.error.__dict__)


def _safe_str(obj: object) -> str:
    try:
        return str(obj)
    except Exception:
        return "(its str() fails)"


# -- in the executor --------------------------------------------------------------------------


def is_failure(outcome: bytes | memoryview) -> bool:
    """Return whether an outcome is anything but a result."""
    return outcome[:1] != RESULT


def read_outcome(outcome: bytes) -> tuple[Any, BaseException | None]:
    """Deserialize an outcome.

    Returns
    -------
    (result, None) or (None, exception)
        The exception is the task's own, or NotSerializable, RemoteError or TaskCrashed. AppFailure is to
        be replaced by one of Parsl's.
    """
    kind, body = outcome[:1], memoryview(outcome)[1:]
    try:
        if kind == RESULT:
            return loads(body), None
        if kind == RAISED:
            return None, _rebuild(pickle.loads(body))
    except BaseException as error:  # user code ran, and this thread serves every task
        from parsl_flux_bulk.errors import NotSerializable

        what = "result" if kind == RESULT else "exception"
        failure = NotSerializable(f"the {what} cannot be deserialized here ({type(error).__name__}: {error})")
        failure.__cause__ = error
        return None, failure
    return None, _task_error(kind, pickle.loads(body))


def _task_error(kind: bytes, record: Any) -> BaseException:
    from parsl_flux_bulk.errors import NotSerializable, TaskCrashed

    if kind == NOT_SERIALIZABLE:
        return NotSerializable(record)
    if kind == APP_FAILED:
        return AppFailure(AppFailed(*record))
    status, text = record
    call = f"sys.exit({text!r}), so exit status {status}," if text else f"sys.exit({status})"
    return TaskCrashed(f"the task called {call} instead of returning", exit_code=status)


def _rebuild(record: dict[str, Any]) -> BaseException:
    error = _load_exception(record)
    for link, other in record["linked"].items():
        setattr(error, link, _rebuild(other))
    # Setting __cause__ sets this as well; the task's own value counts.
    error.__suppress_context__ = record["suppress"]
    return error.with_traceback(_traceback(record["frames"]))


def _load_exception(record: dict[str, Any]) -> BaseException:
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
            why = "only subclasses of Exception are raised here"
    lines = [f'  File "{file}", line {line}, in {name}' for file, name, line, _ in record["frames"]]
    return RemoteError(
        f"{record['type']}: {record['text']} (this exception cannot be rebuilt here: {why})",
        type_name=record["type"],
        traceback="\n".join(lines),
    )


def _traceback(entries: list[tuple[str, str, int, str]]) -> TracebackType | None:
    from tblib import Traceback

    described: dict[str, Any] | None = None
    for file, name, line, module in reversed(entries):
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
