"""Parsl's calls, made ready to travel."""

from __future__ import annotations

import functools
import gc
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from parsl.app.errors import wrap_error
from parsl.app.python import timeout
from parsl.serialize import facade
from parsl.serialize.base import SerializerBase
from parsl.serialize.errors import SerializationError
from specifications import BAD_SECONDS

from parsl_flux_bulk.errors import NotSerializable
from parsl_flux_bulk.executor.serialize_calls import (
    CallNotSerializable,
    FunctionTable,
    own_sys_path,
    serialize_call,
    unwrap,
    walltime_of,
)
from parsl_flux_bulk.protocol import serialize
from parsl_flux_bulk.scheduler.task import Function


def plain(x: int) -> int:
    return x + 1


def generator() -> Iterator[int]:
    yield 1


# -- functions ---------------------------------------------------------------------------------------


def test_what_parsl_wraps_around_a_function_stays_here() -> None:
    assert unwrap(wrap_error(plain)) is plain
    assert unwrap(plain) is plain
    assert unwrap(len) is len


def test_parsls_walltime_is_found_and_the_function_is_sent_once() -> None:
    table = FunctionTable()
    first, second = timeout(wrap_error(plain), 2), timeout(wrap_error(plain), 0.5)
    assert (walltime_of(first), walltime_of(second)) == (2.0, 0.5)
    assert unwrap(first) is plain
    assert table.get(first) is table.get(second) is table.get(wrap_error(plain))
    assert serialize.loads(table.get(first).payload)(1) == 2


def test_without_a_walltime_there_is_none() -> None:
    assert walltime_of(wrap_error(plain)) is walltime_of(plain) is walltime_of(len) is None


@pytest.mark.parametrize("seconds", BAD_SECONDS)
def test_a_walltime_that_is_no_number_is_an_error(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"walltime must be a number of seconds, from 0 to .*, not "):
        walltime_of(timeout(plain, seconds))


def test_a_walltime_travels_with_the_call() -> None:
    call = serialize.dumps(((1,), {}))
    assert serialize.split_walltime(memoryview(call)) == (None, call)
    assert serialize.split_walltime(memoryview(serialize.with_walltime(1.5, call))) == (1.5, call)


def test_another_wrapper_stays() -> None:
    @functools.wraps(plain)
    def wrapper(x: int) -> int:
        return -plain(x)

    assert unwrap(wrapper) is wrapper
    assert serialize.loads(FunctionTable().get(wrap_error(wrapper)).payload)(1) == -2


def test_a_function_is_serialized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = FunctionTable()
    first = table.get(plain)
    monkeypatch.setattr(serialize, "dumps", None)  # a second time would fail
    # Parsl wraps a function anew for each of its apps.
    assert table.get(wrap_error(plain)) is first
    assert table.get(plain) is first
    assert first.name == "plain"


def test_functions_have_ids_of_their_own() -> None:
    table = FunctionTable()
    functions = [eval(f"lambda: {n}") for n in range(20)]
    ids = [table.get(function).function_id for function in functions]
    assert len(set(ids)) == 20 and all(id > 0 for id in ids)


def test_a_function_that_died_gives_its_place_to_no_other() -> None:
    table = FunctionTable()
    seen = set()
    for n in range(200):
        # Each dies before the next is made, which then often has the same address.
        made = table.get(eval(f"lambda: {n}"))
        assert serialize.loads(made.payload)() == n
        seen.add(made.function_id)
    assert len(seen) == 200
    gc.collect()
    assert len(table) <= 1


def test_the_table_keeps_no_function_alive() -> None:
    table = FunctionTable()
    function = eval("lambda: 1")
    table.get(function)
    reference = weakref.ref(function)
    del function
    gc.collect()
    assert reference() is None


class NoReferences:
    __slots__ = ("n",)

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self) -> int:
        return self.n


def test_anything_callable_will_do() -> None:
    table = FunctionTable()
    for function, value in ((functools.partial(plain, 1), 2), (NoReferences(5), 5), ([1, 2].count, None)):
        made = table.get(function)
        if value is not None:
            assert serialize.loads(made.payload)() == value
        assert made.name


def test_many_threads_get_one_function() -> None:
    table, barrier, got = FunctionTable(), threading.Barrier(8), []
    functions = [eval(f"lambda: {n}") for n in range(50)]

    def work() -> None:
        barrier.wait(30)
        got.extend((n, serialize.loads(table.get(f).payload)()) for n, f in enumerate(functions))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(got) == 400 and all(n == value for n, value in got)


def test_a_function_that_cannot_travel_is_named() -> None:
    open_generator = generator()

    def goes_on() -> int:
        return next(open_generator)

    with pytest.raises(CallNotSerializable) as caught:
        FunctionTable().get(goes_on)
    assert "the function goes_on cannot be serialized" in str(caught.value)
    assert "generator" in str(caught.value) and "inside the function's body" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


# -- calls -------------------------------------------------------------------------------------------


def test_a_call_comes_back_as_it_went() -> None:
    call = serialize_call("f", (1, [2]), {"x": {3: "4"}})
    assert serialize.load_call(call) == ((1, [2]), {"x": {3: "4"}})


def test_arguments_that_cannot_travel_are_named() -> None:
    with pytest.raises(CallNotSerializable) as caught:
        serialize_call("simulate", (1, generator(), 3), {"log": generator(), "steps": 5})
    text = str(caught.value)
    assert text.startswith("the call of simulate cannot be serialized: argument 2, of type generator, ")
    assert "argument 'log', of type generator" in text
    assert "argument 1," not in text and "'steps'" not in text
    assert "pass plain data, or the path of a file" in text


@pytest.mark.parametrize(
    "holder", [[Future()], {"a": (1, Future())}, {Future()}], ids=["list", "dict", "set"]
)
def test_futures_in_a_container_are_told_how_to_travel(holder: Any) -> None:
    for args, kwargs in (((1, holder), {}), ((), {"runs": holder})):
        with pytest.raises(CallNotSerializable) as caught:
            serialize_call("select", args, kwargs)
        assert "pass them as inputs=[...]" in str(caught.value)
        assert "plain data" not in str(caught.value)


def test_a_list_in_itself_that_cannot_travel_is_named() -> None:
    own: list[Any] = [generator()]
    own.append(own)
    with pytest.raises(CallNotSerializable, match="argument 1, of type list"):
        serialize_call("select", (own,), {})


def test_the_error_is_ours_and_parsls() -> None:
    error = CallNotSerializable("the call of f cannot be serialized")
    assert isinstance(error, NotSerializable) and isinstance(error, SerializationError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CallNotSerializable and str(again) == str(error)


# -- a serializer of the user's ------------------------------------------------------------------------


class Shouting(SerializerBase):
    """A user's serializer; what it cannot do is left to Parsl's own."""

    _for_code = True
    _for_data = True

    def serialize(self, data: Any) -> bytes:
        if callable(data):
            return data.__name__.upper().encode()
        if isinstance(data, (tuple, dict)):
            return repr(data).upper().encode()
        raise TypeError("only functions and arguments")

    def deserialize(self, payload: bytes) -> Any:
        text = payload.decode().lower()
        return plain if text == "plain" else eval(text)


@pytest.fixture
def shouting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shouting is registered, before Parsl's own."""
    for name, register in (
        ("methods_for_code", facade.register_method_for_code),
        ("methods_for_data", facade.register_method_for_data),
    ):
        parsls = getattr(facade, name)
        monkeypatch.setattr(facade, name, {})
        register(Shouting())
        getattr(facade, name).update(parsls)


@pytest.mark.usefixtures("shouting")
def test_a_users_serializer_is_honoured() -> None:
    function = FunctionTable().get(wrap_error(plain))
    call = serialize_call("plain", ("abc",), {"key": 1})
    assert function.payload[:1] == serialize.PARSL and b"PLAIN" in function.payload
    assert call[:1] == serialize.PARSL and b"'ABC'" in call and b"'KEY'" in call
    assert serialize.loads(function.payload) is plain
    assert serialize.load_call(call) == (("abc",), {"key": 1})


def test_without_one_parsls_facade_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facade, "serialize", None)  # a call would fail
    assert FunctionTable().get(plain).payload[:1] == serialize.PICKLE
    assert serialize_call("plain", (1,), {})[:1] == serialize.PICKLE


# -- functions of the script ---------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace of an empty ``__main__``."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main.__dict__


def value_of(made: Function) -> Any:
    return serialize.loads(made.payload)()


def test_a_helper_that_is_defined_again_takes_effect(script: dict[str, Any]) -> None:
    table = FunctionTable()
    exec("def helper(): return 1\ndef app(): return helper()", script)
    first = table.get(script["app"])
    assert value_of(first) == 1
    assert table.get(script["app"]) is first
    exec("def helper(): return 2", script)
    second = table.get(script["app"])
    assert value_of(second) == 2 and second.function_id != first.function_id
    assert table.get(script["app"]) is second


def test_a_module_under_another_name_takes_effect(script: dict[str, Any]) -> None:
    table = FunctionTable()
    exec("import math as m\ndef app(): return m.__name__", script)
    assert value_of(table.get(script["app"])) == "math"
    exec("import cmath as m", script)
    assert value_of(table.get(script["app"])) == "cmath"


def test_a_content_that_changes_takes_effect(script: dict[str, Any]) -> None:
    table = FunctionTable()
    exec("values = [1]\ndef app(): return values", script)
    first = table.get(script["app"])
    assert table.get(script["app"]) is first
    script["values"].append(2)
    assert value_of(table.get(script["app"])) == [1, 2]


def test_a_large_content_is_serialized_once(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    table = FunctionTable()
    exec("values = [b'x' * 100_000]\ndef app(): return values", script)
    first = table.get(script["app"])
    monkeypatch.setattr(serialize, "dumps", None)  # a second time would fail
    assert table.get(script["app"]) is first


def test_what_is_added_to_sys_path_travels_with_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = FunctionTable()
    monkeypatch.setattr(sys, "path", list(sys.path))
    table.follow_sys_path(own_sys_path())
    first = table.get(plain)
    sys.path.append(str(tmp_path))
    second = table.get(plain)
    assert second is not first and table.get(plain) is second
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    assert serialize.loads(second.payload) is plain
    assert sys.path[-1] == str(tmp_path)


def test_the_variable_that_cannot_travel_is_named(script: dict[str, Any]) -> None:
    exec(
        "import threading\nlock = threading.Lock()\n"
        "def helper():\n    with lock: pass\n"
        "class Plan:\n    def run(self): return helper()\n"
        "def app(): return Plan().run()",
        script,
    )
    words = r"the global variable 'lock', of type lock, which the function helper uses \(TypeError"
    with pytest.raises(CallNotSerializable, match="the function app cannot be serialized: " + words):
        FunctionTable().get(script["app"])
    with pytest.raises(CallNotSerializable, match="argument 2, of type Plan, because of the global variable"):
        serialize_call("f", (1, script["Plan"]()), {})
