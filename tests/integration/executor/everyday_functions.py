"""A user's script: everyday functions, classes and constants as apps, arguments and results.

``test_everyday_functions.py`` runs this file as a script. Each function ``case_...`` is one case, and returns
pairs of a value and what is right. The script prints a JSON object: case to "right", or to what was seen.
"""

import abc
import collections
import contextlib
import dataclasses
import enum
import functools
import json
import operator
import os.path as paths
import pathlib
import statistics as np
import sys
import threading
import time
import typing
import xml.etree.ElementTree
from decimal import Decimal as D

import parsl
from parsl import File, python_app

from parsl_flux_bulk import FluxBulkExecutor

FACTOR = 3
TABLE = {"a": 1}
Energy = typing.NewType("Energy", float)
T = typing.TypeVar("T")
P = typing.ParamSpec("P")
LOCK = threading.Lock()

if typing.TYPE_CHECKING:
    from nowhere import Missing


def call(function, *args, **kwargs):
    """Run a function as an app."""
    return python_app(function)(*args, **kwargs).result(timeout=60)


def helper(x):
    return FACTOR * x


def helper_of_helper(x):
    return helper(x) + 1


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


def uses_a_lock(x):
    with LOCK:
        return x


def calls_a_locker(x):
    return uses_a_lock(x)


class Point:
    """A point."""

    scale = 2
    made = 0

    def __init__(self, x, y=0):
        self.x, self.y = x, y

    def __eq__(self, other):
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None

    def moved(self, by: "Point") -> "Point":
        return Point(self.x + by.x, self.y + by.y)

    @staticmethod
    def doubled(x):
        return Point.scale * x

    @classmethod
    def at(cls, x):
        return cls(helper(x))

    @property
    def norm(self):
        return abs(self.x) + abs(self.y)

    @functools.cached_property
    def slow(self):
        return self.x * 100


class Point3(Point):
    def __init__(self, x, y, z):
        super().__init__(x, y)
        self.z = z


@dataclasses.dataclass
class Job:
    name: str
    size: int = 1
    tags: list = dataclasses.field(default_factory=list)

    def cost(self):
        return helper(self.size)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int


class Color(enum.Enum):
    RED = 1
    BLUE = "b"

    def shout(self):
        return self.name + "!"


class Planet(enum.Enum):
    EARTH = (6.0, 6.4)
    MARS = (0.6, 3.4)

    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius


class Mode(enum.IntFlag):
    READ = enum.auto()
    WRITE = enum.auto()


class Pair(typing.NamedTuple):
    left: int
    right: int = 5


Old = collections.namedtuple("Old", "a b")


class Options(typing.TypedDict):
    depth: int


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


class Square(Shape):
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side**2


class Box(typing.Generic[T]):
    def __init__(self, content: T):
        self.content = content


class Meta(type):
    def __call__(cls, *args):
        made = super().__call__(*args)
        made.tag = "meta"
        return made


class WithMeta(metaclass=Meta):
    pass


class Registered:
    names: typing.ClassVar[dict] = {}

    def __init_subclass__(cls):
        Registered.names[cls.__name__] = cls


class Entry(Registered):
    pass


class Problem(Exception):
    def __init__(self, text, *, code):
        super().__init__(text)
        self.code = code


@functools.cache
def cached(x):
    return helper(x)


@functools.lru_cache(maxsize=7)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@dataclasses.dataclass
class Node:
    value: "Energy"
    after: "Node | None" = None


def logged(function: typing.Callable[P, T]) -> typing.Callable[P, T]:
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return ("logged", function(*args, **kwargs))

    return wrapper


@logged
def wrapped(x):
    """Doc of wrapped."""
    return helper(x)


@functools.singledispatch
def kind_of(x):
    return "object"


@kind_of.register
def _(x: int):
    return "int"


@kind_of.register
def _(x: list):
    return [kind_of(y) for y in x]


@contextlib.contextmanager
def opened(x):
    yield helper(x)


def hinted(x: int, p: Point, e: Energy, *, d: "Point" = None) -> dict[str, list[Point]]:
    """Doc of hinted."""


def badly_hinted(x: "Missing", y: LOCK = 1) -> int:
    return x


def generated(n):
    yield from (helper(x) for x in range(n))


@python_app
def decorated(x):
    return helper_of_helper(x)


@python_app
def with_everything(point, factor=FACTOR, *more, color=Color.RED):
    return point.moved(Point(factor)), color.shout(), len(more), np.mean([1, 3])


def later():
    return "first"


@python_app
def calls_later():
    return later()


@python_app
def reads_the_table():
    return TABLE["a"]


@python_app
def reads_the_factor():
    return FACTOR


def same(x):
    return x


def hints_of(function):
    return typing.get_type_hints(function)


def is_point(x):
    return isinstance(x, Point)


# -- helpers and constants -----------------------------------------------------------------------------


def case_helper():
    yield call(lambda x: helper(x), 2), 6


def case_helper_of_a_helper():
    yield decorated(2).result(60), 7


def case_constant():
    yield call(lambda: FACTOR), 3
    yield call(lambda: TABLE), {"a": 1}


def case_two_helpers_that_call_each_other():
    yield call(even, 10), True
    yield call(odd, 10), False


def case_recursive_closure():
    def factorial(n):
        return 1 if n == 0 else n * factorial(n - 1)

    yield call(factorial, 5), 120


def case_module_under_another_name():
    yield call(lambda xs: np.mean(xs), [1, 3]), 2
    yield call(lambda: paths.join("a", "b")), "a/b"
    yield call(lambda: D("1.5") * 2), D("3.0")


def case_submodule():
    yield call(lambda: xml.etree.ElementTree.fromstring("<a/>").tag), "a"


def case_module_as_an_argument():
    yield call(lambda module: module.mean([1, 3]), np), 2


def case_module_as_a_result():
    yield call(lambda: np), np


def case_lambda_as_an_argument():
    yield call(lambda function, x: function(x), lambda x: helper(x) + FACTOR, 2), 9


def case_function_as_an_argument():
    yield call(lambda function, xs: [function(x) for x in xs], helper, [1, 2]), [3, 6]


def case_function_as_a_result():
    yield call(same, helper)(2), 6
    yield call(lambda n: lambda x: helper(x) + n, 1)(2), 7


def case_closure_over_a_helper():
    def make(n):
        def inner(x):
            return helper(x) + n

        return inner

    yield call(make(10), 1), 13


def case_nested_function_with_a_class():
    def outer(x):
        class Local:
            value = helper(x)

        def inner():
            return Local.value + FACTOR

        return inner()

    yield call(outer, 1), 6


def case_generator_function():
    yield call(lambda n: list(generated(n)), 3), [0, 3, 6]


def case_context_manager():
    def use(x):
        with opened(x) as value:
            return value

    yield call(use, 2), 6


def case_operator_and_builtin_functions():
    yield call(operator.add, 1, 2), 3
    yield call(len, [1, 2]), 2
    yield call(lambda get: get(Point(4)), operator.attrgetter("x")), 4


def case_name_of_the_module():
    yield call(lambda: __name__), "__main__"


def case_global_statement():
    def count():
        global FACTOR
        FACTOR += 1
        return FACTOR

    yield call(count), 4
    yield FACTOR, 3


# -- classes -------------------------------------------------------------------------------------------


def case_object_as_an_argument():
    yield call(lambda point: point.x, Point(3)), 3


def case_object_as_a_result():
    yield type(call(lambda: Point(1))) is Point, True
    yield call(same, Point(1, 2)), Point(1, 2)


def case_method():
    yield call(Point(1).moved, Point(2)), Point(3)


def case_static_and_class_methods():
    yield call(Point.doubled, 2), 4
    yield call(Point.at, 2), Point(6)
    yield call(lambda: (Point.doubled(1), Point.at(1).x)), (2, 3)


def case_property():
    yield call(lambda point: point.norm, Point(1, -2)), 3


def case_cached_property():
    yield call(lambda point: point.slow, Point(2)), 200


def case_class_as_an_argument():
    yield call(lambda cls: cls(4).x, Point), 4
    yield call(same, Point) is Point, True


def case_isinstance():
    yield call(is_point, Point(1)), True
    yield call(is_point, Point3(1, 2, 3)), True
    yield call(is_point, 1), False


def case_subclass():
    back = call(lambda: Point3(1, 2, 3))
    yield (type(back) is Point3, isinstance(back, Point), back.z), (True, True, 3)


def case_results_leave_the_scripts_class_alone():
    method = Point.moved
    Point.made += 1
    call(same, Point(1))
    yield Point.moved is method, True
    yield Point.made, 1


def case_subclasses_are_registered_once():
    before = dict(Registered.names)
    yield type(call(same, Entry())) is Entry, True
    yield Registered.names == before, True


def case_dataclass():
    yield call(lambda job: job.cost(), Job("a", 2)), 6
    yield call(lambda: Job("b", tags=[1])), Job("b", tags=[1])
    yield call(lambda job: dataclasses.replace(job, size=9), Job("a")), Job("a", 9)


def case_frozen_dataclass_with_slots():
    yield call(lambda frozen: Frozen(frozen.x + 1), Frozen(1)), Frozen(2)


def case_enum():
    yield call(lambda color: color.shout(), Color.BLUE), "BLUE!"
    yield call(lambda: Color.RED) is Color.RED, True
    yield call(lambda color: color is Color.RED, Color.RED), True


def case_enum_with_attributes():
    yield call(lambda planet: (planet.mass, Planet(planet.value) is planet), Planet.MARS), (0.6, True)
    yield call(lambda: Planet.EARTH) is Planet.EARTH, True


def case_flag():
    yield call(lambda mode: mode | Mode.WRITE, Mode.READ), Mode.READ | Mode.WRITE


def case_named_tuples():
    yield call(lambda pair: pair._replace(left=2), Pair(1)), Pair(2)
    yield call(lambda: Old(1, 2)), Old(1, 2)
    yield type(call(same, Old(1, 2))) is Old, True


def case_typed_dict():
    yield call(lambda: Options(depth=2)), {"depth": 2}


def case_abstract_class():
    yield call(lambda side: Square(side).area(), 3), 9
    yield call(lambda shape: isinstance(shape, Shape), Square(1)), True


def case_generic_class():
    yield call(lambda: Box[int](3).content), 3
    yield call(same, Box(1)).content, 1


def case_metaclass():
    yield call(lambda: WithMeta().tag), "meta"


def case_exception():
    def fail():
        raise Problem("bad", code=FACTOR)

    try:
        call(fail)
    except Problem as error:
        yield (str(error), error.code), ("bad", 3)


def case_except_in_the_task():
    def catch(error):
        try:
            raise error
        except Problem as caught:
            return caught.code

    yield call(catch, Problem("x", code=5)), 5


def case_instance_as_a_constant():
    origin = Point(7)
    yield call(lambda: origin.moved(Point(1)).x), 8


def case_file_and_path():
    yield call(lambda file: file.filename, File("a.txt")), "a.txt"
    yield call(lambda path: path / "b", pathlib.Path("a")), pathlib.Path("a/b")


# -- functools and typing --------------------------------------------------------------------------------


def case_cache():
    yield call(cached, 2), 6
    yield call(lambda function: function(2), cached), 6
    yield call(same, cached) is cached, True


def case_lru_cache_that_calls_itself():
    yield call(fib, 20), 6765
    yield call(lambda f: (f(10), f.cache_parameters()["maxsize"]), fib), (55, 7)


def case_wraps():
    yield call(wrapped, 2), ("logged", 6)
    yield call(lambda: (wrapped.__name__, wrapped.__doc__)), ("wrapped", "Doc of wrapped.")


def case_partial():
    yield call(functools.partial(helper, 5)), 15
    yield call(lambda f: f(1), functools.partial(operator.add, FACTOR)), 4


def case_singledispatch():
    yield call(lambda: (kind_of(1), kind_of("s"), kind_of([1, "s"]))), ("int", "object", ["int", "object"])


def case_reduce():
    yield call(lambda xs: functools.reduce(lambda a, b: a + helper(b), xs), [1, 2, 3]), 16


def case_new_type():
    yield call(lambda: Energy(2.5)), 2.5
    yield call(lambda kind: (kind.__name__, kind.__supertype__), Energy), ("Energy", float)
    yield call(same, Energy) is Energy, True


def case_type_variables():
    yield call(lambda: (T.__name__, P.__name__)), ("T", "P")
    yield call(same, T) is T, True
    yield call(same, P) is P, True


def case_annotations():
    yield call(lambda: hinted.__annotations__["x"]), int
    yield call(lambda function: function.__annotations__, hinted), hinted.__annotations__
    yield call(same, hinted).__annotations__, hinted.__annotations__


def case_type_hints():
    yield call(hints_of, hinted), typing.get_type_hints(hinted)
    yield call(hints_of, Job), typing.get_type_hints(Job)
    yield call(hints_of, Node), typing.get_type_hints(Node)
    yield call(lambda: typing.get_type_hints(Point.moved))["by"] is Point, True


def case_hints_that_cannot_travel():
    yield call(badly_hinted, 3), 3
    yield call(lambda function: function(4), badly_hinted), 4


def case_defaults_and_docstring():
    yield call(lambda f: (f.__doc__, f.__kwdefaults__), hinted), ("Doc of hinted.", {"d": None})
    yield call(lambda x, y=FACTOR, *, z=Color.RED: (x, y, z.name), 1), (1, 3, "RED")
    yield with_everything(Point(1)).result(60), (Point(4), "RED!", 0, 2)


def case_attributes_of_functions():
    def tagged():
        return tagged.tag

    tagged.tag = "tag"
    yield call(tagged), "tag"


# -- what changes while the script runs ------------------------------------------------------------------


def case_helper_defined_again():
    global later
    yield calls_later().result(60), "first"

    def later():
        return "second"

    yield calls_later().result(60), "second"


def case_constant_changed():
    global FACTOR
    yield reads_the_factor().result(60), 3
    FACTOR = 4
    yield reads_the_factor().result(60), 4
    FACTOR = 3
    yield reads_the_factor().result(60), 3


def case_content_changed():
    yield reads_the_table().result(60), 1
    TABLE["a"] = 2
    yield reads_the_table().result(60), 2
    TABLE["a"] = 1


def case_sys_path_changed():
    for name, number in (("added_one", 1), ("added_two", 2)):
        directory = pathlib.Path(f"later-{name}").absolute()
        directory.mkdir()
        (directory / f"{name}.py").write_text(f"def f(): return {number}\nclass C: n = {number}\n")
        sys.path.append(str(directory))
        module = __import__(name)
        yield call(module.f), number
        yield call(same, module.C) is module.C, True
        yield [call(lambda name: __import__(name).f(), name) for _ in range(4)], [number] * 4


def case_imports_from_c():
    """C code finds the built-in functions in the globals of its caller."""

    def parse(text):
        import datetime
        import time

        time.tzset()
        return datetime.datetime.strptime(text, "%Y").year

    yield call(parse, "2020"), 2020
    yield call(lambda text: time.strptime(text, "%Y").tm_year, "2021"), 2021


# -- what cannot travel ------------------------------------------------------------------------------------


def refusal(function, *args):
    try:
        call(function, *args)
    except Exception as error:
        return str(error)
    return "no error"


def case_global_that_cannot_travel():
    words = refusal(calls_a_locker, 1)
    yield (
        "the global variable 'LOCK', of type lock, which the function uses_a_lock uses" in words or words,
        True,
    )
    yield "calls_a_locker cannot be serialized" in words and "inside the function's body" in words, True


def case_closure_that_cannot_travel():
    lock = threading.Lock()

    def guarded():
        return lock

    words = refusal(guarded)
    yield "'lock' of an enclosing function, of type lock, which the function " in words or words, True


def case_argument_that_cannot_travel():
    words = refusal(same, uses_a_lock)
    yield "argument 1, of type function, because of the global variable 'LOCK'" in words or words, True
    job = Job("a", tags=threading.Lock())
    words = refusal(same, job)
    yield "the attribute 'tags', of type lock, of an object of type Job" in words or words, True


def main():
    seen = {}
    executor = FluxBulkExecutor(**json.loads(sys.argv[1]))
    with parsl.load(parsl.Config(executors=[executor], run_dir="runinfo", strategy="none")):
        for name, case in [item for item in globals().items() if item[0].startswith("case_")]:
            start = time.monotonic()
            try:
                wrong = [f"{value!r} and not {right!r}" for value, right in case() if value != right]
            except Exception as error:
                wrong = [f"{type(error).__name__}: {error}"]
            seen[name.removeprefix("case_")] = "; ".join(wrong) or "right"
            if time.monotonic() - start > 60:
                seen[name.removeprefix("case_")] = "slow"
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
