"""How calls and outcomes are serialized: both sides in one process, and the worker's side alone."""

from __future__ import annotations

import functools
import io
import pickle
import subprocess
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PROJECT
from hypothesis import given
from hypothesis import strategies as st

from parsl_flux_bulk.errors import NotSerializable, RemoteError, TaskCrashed
from parsl_flux_bulk.protocol import by_value, serialize

FACTOR = 10


def by_name(x: int) -> int:
    return x * FACTOR


def decorated(x: int, *, plus: int = 5) -> int:
    """Its name leads to what replaced it, as that of every Parsl app does."""
    return x * FACTOR + plus


original, decorated = decorated, functools.partial(decorated, 1)  # type: ignore[assignment]


class Plain(Exception):
    pass


class Attributes(Exception):
    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{where}: code {code}")
        self.code = code
        self.where = where


class CannotBeUnpickled(Exception):
    def __init__(self, handle: Any) -> None:
        super().__init__("it holds a generator")
        self.handle = handle


class LiesAboutItself(Exception):
    """Pickles without complaint, and fails only where it is read."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class CannotSayItself(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class ExitsWhenRead:
    """Ends whatever thread reads it, unless that is guarded against."""

    def __reduce__(self) -> Any:
        return sys.exit, (7,)


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, BaseException | None]:
    """Make a call as a worker does, and read its outcome as the executor does."""
    sent = serialize.loads(serialize.dumps(function))
    return serialize.read_outcome(serialize.run(sent, serialize.dumps((args, kwargs))))


def error_of(function: Callable[..., Any], *args: Any) -> BaseException:
    result, error = run(function, *args)
    assert result is None and error is not None
    return error


# -- functions ---------------------------------------------------------------------------------------


def test_a_function_that_its_name_leads_to_is_only_named() -> None:
    payload = serialize.dumps(by_name)
    assert payload[:1] == serialize.PICKLE and len(payload) < 100
    assert serialize.loads(payload) is by_name


def test_a_function_that_its_name_does_not_lead_to_is_carried_whole() -> None:
    payload = serialize.dumps(original)
    carried = serialize.loads(payload)
    assert payload[:1] == serialize.PICKLE
    assert carried is not original
    assert carried(2) == 25 and carried(2, plus=1) == 21
    assert (carried.__name__, carried.__doc__, carried.__module__) == (
        "decorated",
        original.__doc__,
        __name__,
    )


def test_closures_defaults_and_attributes_travel() -> None:
    hidden = {"a": 1}

    def inner(x: int, y: int = 2, *, z: int = 3) -> Any:
        return x, y, z, hidden, inner_too()

    def inner_too() -> str:
        return "inner"

    inner.note = "attribute"  # type: ignore[attr-defined]
    payload = serialize.dumps(inner)
    carried = serialize.loads(payload)
    assert payload[:1] == serialize.PICKLE
    assert carried(1) == (1, 2, 3, {"a": 1}, "inner")
    assert carried.note == "attribute"


def test_a_wrapper_keeps_the_globals_of_the_module_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "walltimes.py").write_text(
        "import functools, operator\n"
        "def limited(function):\n"
        "    @functools.wraps(function)\n"
        "    def wrapper(x):\n"
        "        return operator.neg(function(x))\n"
        "    return wrapper\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    limited = __import__("walltimes").limited
    wrapper = limited(by_name)
    carried = serialize.loads(serialize.dumps(wrapper))
    assert wrapper.__module__ == carried.__module__ == __name__
    assert carried(1) == wrapper(1)


APPS = """
import os, os.path as paths
import antigravity_of_apps

COUNT = 1

def decorate(function):
    def app(*args): return function(*args)
    globals()["the_" + function.__name__] = function
    return app

@decorate
def nothing(x, y=2):
    from math import floor
    return len([x, y]) + floor(0.5)

@decorate
def modules(x): return paths.basename(os.path.join("a", x))

@decorate
def inner(x):
    return [(lambda y: os.path.basename(y))(z) for z in (x,)]

@decorate
def a_constant(x): return COUNT + x

@decorate
def a_neighbour(x): return nothing(x)

@decorate
def sets(x):
    global COUNT
    COUNT = x

@decorate
def looks(x): return globals()["COUNT"] + x

@decorate
def makes(x):
    class Local: y = COUNT
    return Local.y + x
"""


@pytest.mark.parametrize(
    "name, argument, result, imported",
    [
        ("nothing", 1, 2, False),
        ("modules", "b", "b", False),
        ("inner", "a/b", ["b"], False),
        ("a_constant", 1, 2, True),
        ("a_neighbour", 1, 2, True),
        ("sets", 1, None, True),
        ("looks", 1, 2, True),
        ("makes", 1, 2, True),
    ],
)
def test_the_module_of_an_app_is_imported_only_if_the_app_uses_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bare_python: Callable[[str], str],
    name: str,
    argument: object,
    result: object,
    imported: bool,
) -> None:
    (tmp_path / "antigravity_of_apps.py").touch()
    (tmp_path / "some_apps.py").write_text(APPS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_apps", raising=False)
    function = getattr(__import__("some_apps"), f"the_{name}")
    payload, call = serialize.dumps(function), serialize.dumps(((argument,), {}))
    assert payload[:1] == serialize.PICKLE
    printed = bare_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from parsl_flux_bulk.protocol import serialize\n"
        f"print(serialize.read_outcome(serialize.run(serialize.loads({payload!r}), {call!r})))\n"
        "print('antigravity_of_apps' in sys.modules)"
    )
    assert printed.splitlines() == [str((result, None)), str(imported)]


def test_a_function_of_a_module_that_nobody_can_import_takes_its_globals_along() -> None:
    module = types.ModuleType("loaded_from_a_file")
    exec("factor = 3\ndef times(x): return factor * x", module.__dict__)
    payload = serialize.dumps(module.times)
    assert payload[:1] == serialize.CLOUDPICKLE
    assert serialize.loads(payload)(2) == 6


def test_a_closure_may_contain_itself() -> None:
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    payload = serialize.dumps(factorial)
    assert payload[:1] == serialize.PICKLE
    assert serialize.loads(payload)(5) == 120


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An empty ``__main__``."""
    script = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", script)
    return script


def test_a_class_of_main_goes_script_globals(
    script: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    exec("class Point:\n    def __init__(self, x): self.x = x", script.__dict__)
    payload = serialize.dumps(script.Point(3))
    assert payload[:1] == serialize.CLOUDPICKLE
    # As in a worker, whose __main__ has no such class.
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert serialize.loads(payload).x == 3


def test_a_function_of_another_python_is_refused_in_words() -> None:
    make, state, *_ = by_value.Pickler(io.BytesIO()).reducer_override(original)
    with pytest.raises(ValueError, match=r"decorated was serialized by Python 2\.7, and this is Python 3"):
        make((2, 7), *state[1:])


def test_what_nothing_can_carry_raises() -> None:
    with pytest.raises(TypeError, match="generator"):
        serialize.dumps(i for i in ())


def test_an_unknown_payload_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"unknown payload kind b'\?'; expected one of P, C, S, I, F"):
        serialize.loads(b"?nonsense")


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain_data, plain_data)
def test_plain_data_comes_back_as_it_went(value: object, other: object) -> None:
    assert run(lambda *args, **kwargs: (args, kwargs), value, key=other) == (((value,), {"key": other}), None)


# -- results -----------------------------------------------------------------------------------------


def test_a_result_is_told_from_every_failure() -> None:
    def outcome(function: Callable[..., Any]) -> bytes:
        return serialize.run(function, serialize.dumps(((), {})))

    assert not serialize.is_failure(outcome(int))
    assert serialize.is_failure(outcome(lambda: 1 / 0))
    assert serialize.is_failure(outcome(sys.exit))
    assert serialize.is_failure(outcome(lambda: (i for i in ())))
    assert serialize.is_failure(serialize.not_deserializable("function", ImportError("no such module")))


def test_functions_can_be_results() -> None:
    result, error = run(lambda n: lambda x: x + n, 3)
    assert error is None and result(4) == 7


def test_a_result_that_cannot_travel_is_named() -> None:
    error = error_of(lambda: (i for i in ()))
    assert isinstance(error, NotSerializable)
    assert "the result, of type builtins.generator, cannot be serialized" in str(error)
    assert "return plain data, or write it to a file" in str(error)


def test_arguments_that_cannot_be_read_are_named() -> None:
    outcome = serialize.run(by_name, serialize.PICKLE + b"garbage")
    _, error = serialize.read_outcome(outcome)
    assert isinstance(error, NotSerializable)
    assert "the arguments cannot be deserialized in the worker (UnpicklingError" in str(error)


def test_a_function_that_cannot_be_read_is_named() -> None:
    _, error = serialize.read_outcome(
        serialize.not_deserializable("function", ModuleNotFoundError("No module named 'beside'"))
    )
    assert isinstance(error, NotSerializable)
    assert (
        "the function cannot be deserialized in the worker (ModuleNotFoundError: No module named 'beside')"
        in str(error)
    )


def test_a_result_that_cannot_be_read_here_harms_nobody() -> None:
    for kind in (LiesAboutItself, ExitsWhenRead):
        error = error_of(kind)
        assert isinstance(error, NotSerializable)
        assert "the result cannot be deserialized here" in str(error)
        assert isinstance(error.__cause__, (ValueError, SystemExit))


# -- exceptions --------------------------------------------------------------------------------------


def fails_deeper(error: BaseException) -> None:
    raise error


def fails(error: BaseException) -> None:
    fails_deeper(error)


def test_an_exception_comes_as_it_was_raised() -> None:
    error = error_of(fails, Plain("one", 2))
    assert type(error) is Plain
    assert error.args == ("one", 2)


def test_its_traceback_is_the_remote_one() -> None:
    error = error_of(fails, Plain("x"))
    frames = traceback.extract_tb(error.__traceback__)
    assert [frame.name for frame in frames] == ["fails", "fails_deeper"]
    assert {frame.filename for frame in frames} == {__file__}
    assert frames[1].line == "raise error"


def test_an_exception_whose_class_takes_other_arguments() -> None:
    error = error_of(lambda: fails(Attributes(3, "here")))
    assert type(error) is Attributes
    assert (error.code, error.where, str(error)) == (3, "here", "here: code 3")


def test_notes_travel() -> None:
    def noted() -> None:
        error = Plain("x")
        error.__notes__ = ["a note"]  # type: ignore[attr-defined]
        raise error

    assert error_of(noted).__notes__ == ["a note"]  # type: ignore[attr-defined]


def test_a_local_class_of_exceptions_travels() -> None:
    def local() -> None:
        class Local(Exception):
            pass

        raise Local("inside")

    error = error_of(local)
    assert type(error).__name__ == "Local" and error.args == ("inside",)


def with_cause() -> None:
    try:
        fails(Plain("the cause"))
    except Plain as cause:
        raise RuntimeError("the effect") from cause


def with_context() -> None:
    try:
        fails(Plain("the context"))
    except Plain:
        raise RuntimeError("during that") from None


def test_the_cause_comes_with_its_own_traceback() -> None:
    error = error_of(with_cause)
    assert type(error) is RuntimeError
    assert type(error.__cause__) is Plain and error.__cause__.args == ("the cause",)
    assert [f.name for f in traceback.extract_tb(error.__cause__.__traceback__)] == [
        "with_cause",
        "fails",
        "fails_deeper",
    ]
    assert "direct cause" in "".join(traceback.format_exception(type(error), error, error.__traceback__))


def test_a_suppressed_context_stays_suppressed() -> None:
    error = error_of(with_context)
    assert error.__suppress_context__ and error.__cause__ is None
    assert type(error.__context__) is Plain
    assert "the context" not in "".join(traceback.format_exception(type(error), error, error.__traceback__))


def test_a_ring_of_exceptions_ends() -> None:
    def ring() -> None:
        first, second = Plain("first"), Plain("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    error = error_of(ring)
    assert str(error) == "first" and str(error.__cause__) == "second"
    assert error.__cause__ is not None and error.__cause__.__cause__ is None


def test_a_long_chain_is_cut_and_not_an_end_of_everything() -> None:
    def retries(n: int) -> None:
        last: Exception | None = None
        for attempt in range(n):
            try:
                raise Plain(attempt) from last
            except Plain as error:
                last = error
        assert last is not None
        raise last

    error = error_of(retries, 5000)
    assert type(error) is Plain and error.args == (4999,)
    chain = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__
    assert [e.args[0] for e in chain] == list(range(4999, 4999 - len(chain), -1))
    assert 10 < len(chain) <= 50


def endless(n: int) -> int:
    return endless(n + 1)


def test_endless_recursion_is_an_exception_like_others() -> None:
    error = error_of(endless, 0)
    assert type(error) is RecursionError
    frames = traceback.extract_tb(error.__traceback__)
    assert {frame.name for frame in frames} == {"endless"} and len(frames) <= 200


def test_an_exception_that_cannot_be_pickled_is_told_of() -> None:
    def unpicklable() -> None:
        raise CannotBeUnpickled(i for i in ())

    error = error_of(unpicklable)
    assert isinstance(error, RemoteError)
    assert error.type_name == f"{__name__}.CannotBeUnpickled"
    assert "CannotBeUnpickled: it holds a generator" in str(error) and "cannot be pickled" in str(error)
    assert "in unpicklable" in error.traceback
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["unpicklable"]


def test_an_exception_that_cannot_be_unpickled_is_told_of() -> None:
    error = error_of(lambda: fails(Plain("outer", LiesAboutItself())))
    assert isinstance(error, RemoteError) and error.type_name == f"{__name__}.Plain"
    # Its own way fails, and what we fall back on rebuilds it.
    rebuilt = error_of(lambda: fails(LiesAboutItself("text")))
    assert type(rebuilt) is LiesAboutItself and rebuilt.args == ("text",)


def test_an_exception_that_can_be_read_there_but_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = serialize.run(fails, serialize.dumps(((Plain("x"),), {})))
    monkeypatch.delattr(sys.modules[__name__], "Plain")
    _, error = serialize.read_outcome(outcome)
    assert isinstance(error, RemoteError)
    assert "AttributeError" in str(error) and "Plain: x" in str(error)
    assert "in fails_deeper" in error.traceback


def test_an_exception_that_cannot_say_itself() -> None:
    error = error_of(fails, CannotSayItself())
    assert type(error) is CannotSayItself


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_would_end_our_own_thread_is_not_raised_here(kind: type[BaseException]) -> None:
    error = error_of(fails, kind("stop"))
    assert isinstance(error, RemoteError)
    assert error.type_name == f"builtins.{kind.__name__}"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (None, 0, "sys.exit(0)"),
        (3, 3, "sys.exit(3)"),
        (True, 1, "sys.exit(1)"),
        ("no input file", 1, "sys.exit('no input file'), so exit status 1,"),
    ],
)
def test_sys_exit_is_no_result(code: object, status: int, words: str) -> None:
    error = error_of(sys.exit, code)
    assert isinstance(error, TaskCrashed)
    assert error.exit_code == status
    assert str(error) == f"the task called {words} instead of returning"


def test_errors_of_ours_can_be_pickled_by_parsl() -> None:
    for error in (error_of(sys.exit, 3), error_of(fails, KeyboardInterrupt())):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
        assert again.__dict__ == error.__dict__


# -- the worker's side alone ---------------------------------------------------------------------------


@pytest.fixture
def bare_python() -> Iterator[Callable[[str], str]]:
    """Runs code in an interpreter that has only the package."""

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield python


def test_a_plain_call_imports_neither_parsl_nor_cloudpickle(
    bare_python: Callable[[str], str], script: types.ModuleType
) -> None:
    exec("def double(x):\n    return [2 * x]", script.__dict__)
    function, call = serialize.dumps(script.double), serialize.dumps(((4,), {}))
    assert function[:1] == call[:1] == serialize.PICKLE
    printed = bare_python(
        "import sys; from parsl_flux_bulk.protocol import serialize\n"
        f"outcome = serialize.run(serialize.loads({function!r}), {call!r})\n"
        "heavy = {'parsl', 'dill', 'cloudpickle', 'tblib', 'typeguard', 'logging'}\n"
        "print(outcome, [*heavy.intersection(sys.modules)])"
    )
    assert printed.strip() == f"{serialize.RESULT + serialize.dumps([8])!r} []"


def test_an_exception_travels_from_an_interpreter_without_parsl(
    bare_python: Callable[[str], str], script: types.ModuleType
) -> None:
    exec("def fail(x):\n    raise ValueError(x)", script.__dict__)
    function, call = serialize.dumps(script.fail), serialize.dumps(((4,), {}))
    printed = bare_python(
        "import sys; from parsl_flux_bulk.protocol import serialize\n"
        f"outcome = serialize.run(serialize.loads({function!r}), {call!r})\n"
        "assert 'cloudpickle' not in sys.modules and 'parsl' not in sys.modules; print(outcome.hex())"
    )
    _, error = serialize.read_outcome(bytes.fromhex(printed))
    assert type(error) is ValueError and error.args == (4,)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["fail"]
