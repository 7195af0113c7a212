"""Resource specifications: what each becomes, and how each mistake is reported."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import textwrap
from types import MappingProxyType

import pytest
from helpers import PROJECT
from parsl.executors.errors import InvalidResourceSpecification
from specifications import BAD, GOOD, Bad, Good

from parsl_flux_bulk.jobspec import build
from parsl_flux_bulk.jobspec.constraint import parse_constraint
from parsl_flux_bulk.jobspec.dependency import parse_dependency
from parsl_flux_bulk.jobspec.duration import parse_duration
from parsl_flux_bulk.jobspec.environment import filter_environment
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.jobspec.validate_resource_keys import VALID_KEYS

ENVIRONMENT = {"HOME": "/home/me", "KEPT": "kept", "GONE_1": "1", "GONE_2": "2"}
read = Resources.from_specification


def at(jobspec, path):
    for key in path.split("."):
        jobspec = jobspec[int(key)] if isinstance(jobspec, list) else jobspec[key]
    return jobspec


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GOOD, ids=lambda row: str(row.spec)[:60])
def test_good_specification_becomes_this_in_the_jobspec(row: Good):
    jobspec = build(read(row.spec), ["true"], environment=ENVIRONMENT, cwd="/work").data
    for path, expected in row.expected.items():
        assert at(jobspec, path) == expected


@pytest.mark.parametrize("row", BAD, ids=lambda row: str(row.spec)[:60])
def test_bad_specification_says_which_key_and_what_would_be_right(row: Bad):
    with pytest.raises(InvalidResourceSpecification) as caught:
        read(row.spec)
    assert caught.value.invalid_keys == {row.key}
    message = str(caught.value)
    for words in (*row.words, repr(row.key)):
        assert words in message
    value = row.spec[row.key]
    assert repr(value) in message or isinstance(value, (dict, list))
    for key in VALID_KEYS:
        assert key in message


def test_the_table_is_long_enough():
    assert len(GOOD) + len(BAD) >= 60


def test_every_key_is_in_the_table_and_in_the_documentation():
    documented = (PROJECT / "docs" / "resources.md").read_text(encoding="utf-8")
    for key in VALID_KEYS:
        assert any(key in row.spec for row in GOOD), f"no good row for {key}"
        assert any(key == row.key for row in BAD), f"no bad row for {key}"
        assert f"| `{key}` |" in documented


# -- the whole -------------------------------------------------------------------------------------


def test_nothing_of_parsl_or_flux_is_imported_to_read_and_build():
    code = (
        "import sys\n"
        "from parsl_flux_bulk.jobspec.resources import Resources\n"
        "from parsl_flux_bulk.jobspec import build\n"
        "build(Resources.from_specification({'num_tasks': 2}), ['a'], environment={}, cwd='/')\n"
        "assert not {'parsl', 'flux', 'yaml'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT, timeout=60)


def test_equal_specifications_give_equal_and_hashable_resources():
    first, second = read({"num_tasks": 2, "constraint": "a"}), read({"constraint": ["a"], "num_tasks": 2})
    assert first == second
    assert hash(first) == hash(second)
    assert first != read({"num_tasks": 3, "constraint": "a"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.num_tasks = 5


@pytest.mark.parametrize(("priority", "urgency"), [(0, 16), (5, 11), (-3, 19), (1000, 1), (-1000, 30)])
def test_the_priority_of_a_task_job_is_an_urgency(priority, urgency):
    # 31 would be "expedite", and 0 "hold".
    assert read({"num_tasks": 1, "priority": priority}).urgency == urgency


def test_a_priority_that_no_float_can_hold_is_refused():
    with pytest.raises(InvalidResourceSpecification, match="a number that a float can hold"):
        read({"priority": 10**400})


def test_the_same_small_specification_is_read_once():
    assert read({}) is read(MappingProxyType({}))
    assert read({"cores_per_task": 2}) is read({"cores_per_task": 2})


def test_reading_a_good_value_does_not_let_an_equal_bad_one_through():
    read({"num_tasks": 1})
    for impostor in (True, 1.0):
        with pytest.raises(InvalidResourceSpecification):
            read({"num_tasks": impostor})


def test_the_specification_is_left_as_it_was():
    inner = {"b": {"c": 1}}
    specification = {"shell_options": {"a": inner, "a.b.d": 2}, "num_nodes": 2, "ranks_per_node": 2}
    read(specification)
    assert inner == {"b": {"c": 1}}
    assert specification == {"shell_options": {"a": inner, "a.b.d": 2}, "num_nodes": 2, "ranks_per_node": 2}


def test_long_values_are_shortened_in_errors():
    with pytest.raises(InvalidResourceSpecification) as caught:
        read({"wibble": "x" * 10_000})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("specification", "shape"),
    [
        ({}, Shape(1, 0)),
        ({"cores_per_task": 4}, Shape(4, 0)),
        ({"gpus_per_task": 1}, Shape(1, 1)),
        ({"gpus_per_task": 0, "cores_per_task": 1}, Shape(1, 0)),
        ({"queue": None, "cores_per_task": 2}, Shape(2, 0)),
        ({"launcher_options": ""}, Shape(1, 0)),
        ({"gpus_per_task": 0.25}, Shape(1, 0.25)),
        ({"cores_per_task": 0.5, "gpus_per_task": 2.0}, Shape(0.5, 2)),
        ({"num_tasks": 1}, None),
        ({"duration": 60}, None),
        ({"urgency": 16}, None),
        ({"name": "x"}, None),
        ({"environment": {"A": "1"}}, None),
        ({"num_nodes": 1}, None),
        ({"num_ranks": 1}, None),
    ],
)
def test_only_what_a_worker_can_give_has_a_shape(specification, shape):
    assert read(specification).shape == shape


@pytest.mark.parametrize(
    ("specification", "cores", "gpus", "nodes"),
    [
        ({}, 1, 0, None),
        ({"num_tasks": 3, "cores_per_task": 4, "gpus_per_task": 2}, 12, 6, None),
        ({"num_tasks": 5, "num_nodes": 3, "cores_per_task": 2}, 12, 0, 3),
        ({"num_nodes": 2}, None, None, 2),
        ({"num_nodes": 2, "exclusive": False}, 2, 0, 2),
    ],
)
def test_what_a_job_occupies(specification, cores, gpus, nodes):
    resources = read(specification)
    assert (resources.cores, resources.gpus, resources.num_nodes) == (cores, gpus, nodes)


# -- durations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        (".5h", 1800),
        ("2d", 172800),
        ("10ms", 0.01),
        ("1e2s", 100),
    ],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "5 s", "5M", "1:00", "nan", "inf", "1_0", "0x1", "5m3s", "٣s", "1e999"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError):
        parse_duration(text)


# -- constraints and dependencies ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("a b c", {"properties": ["a", "b", "c"]}),
        ("a&b && c and d", {"properties": ["a", "b", "c", "d"]}),
        ("a|b or c||d", {"or": [{"properties": [p]} for p in "abcd"]}),
        ("a or b and c", {"or": [{"properties": ["a"]}, {"properties": ["b", "c"]}]}),
        ("(a|b) c", {"and": [{"or": [{"properties": ["a"]}, {"properties": ["b"]}]}, {"properties": ["c"]}]}),
        ("a|b c", {"and": [{"or": [{"properties": ["a"]}, {"properties": ["b"]}]}, {"properties": ["c"]}]}),
        ("not a b", {"and": [{"not": [{"properties": ["a"]}]}, {"properties": ["b"]}]}),
        ("not (a b)", {"not": [{"properties": ["a", "b"]}]}),
        ("b|-c", {"or": [{"properties": ["b"]}, {"not": [{"properties": ["c"]}]}]}),
        ("host:'n[1-2]' rank:0", {"and": [{"hostlist": ["n[1-2]"]}, {"ranks": ["0"]}]}),
        ("notable andy", {"properties": ["notable", "andy"]}),
        ("^a", {"properties": ["^a"]}),
    ],
)
def test_constraint_expressions(text, constraint):
    assert parse_constraint(text) == constraint


@pytest.mark.parametrize(
    ("uri", "dependency"),
    [
        ("afterok:ƒ12", {"scheme": "afterok", "value": "ƒ12"}),
        ("AfterOK:1", {"scheme": "afterok", "value": "1"}),
        ("singleton", {"scheme": "singleton", "value": ""}),
        ("a:b:c", {"scheme": "a", "value": "b:c"}),
        ("a:b?c=1&d=x&d=nan", {"scheme": "a", "value": "b", "c": 1, "d": ["x", "nan"]}),
    ],
)
def test_dependency_uris(uri, dependency):
    assert parse_dependency(uri) == dependency


# -- environment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "variables", "templates"),
    [
        ([], ENVIRONMENT, {}),
        (["-*"], {}, {}),
        (["-*", "KEPT"], {"KEPT": "kept"}, {}),
        (["-*", "KEPT=x", "KEPT"], {"KEPT": "x"}, {}),
        (["-*", "GONE_[1]"], {"GONE_1": "1"}, {}),
        (["-/(GONE|HO)/"], {"KEPT": "kept"}, {}),
        (["-/ONE/", "-GON"], ENVIRONMENT, {}),
        (["-*", "P=/bin", "P=$P:/usr:${KEPT}:$$x"], {"P": "/bin:/usr:kept:$x"}, {}),
        (["-*", "ID=job-{{id}}", "E="], {"E": ""}, {"ID": "job-{{id}}"}),
        (["no-such-*"], ENVIRONMENT, {}),
    ],
)
def test_environment_rules(rules, variables, templates):
    result = filter_environment(rules, ENVIRONMENT)
    assert result == (variables, templates)


def test_rules_from_a_file_may_have_blank_lines_and_begin_at_home(tmp_path):
    (tmp_path / "rules").write_text("-*\n\nKEPT\n A=b$KEPT \n", encoding="utf-8")
    environment = {**ENVIRONMENT, "HOME": str(tmp_path)}
    assert filter_environment(["^~/rules"], environment).variables == {"KEPT": "kept", "A": "bkept"}


def test_filtering_leaves_the_given_environment_alone():
    before = dict(ENVIRONMENT)
    filter_environment(["-*", "A=1"], ENVIRONMENT)
    assert before == ENVIRONMENT


@pytest.mark.parametrize(
    ("rule", "words"),
    [("A=$NOT_SET", "NOT_SET is not set"), ("^/no/such/file", "/no/such/file"), ("A=${", "'$'")],
)
def test_rules_that_cannot_be_applied(rule, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        filter_environment([rule], ENVIRONMENT)


# -- the documentation -----------------------------------------------------------------------------


def test_every_example_in_the_documentation_is_a_good_specification():
    text = (PROJECT / "docs" / "resources.md").read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.M | re.S)]
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    specifications = {name: value for name, value in names.items() if isinstance(value, dict)}
    del specifications["__builtins__"]
    assert {"small", "mpi", "clean", "inside_slurm", "cray"} <= specifications.keys()
    for specification in specifications.values():
        read(specification)
    assert read(specifications["threads"]).shape == Shape(8, 0)
    first, *others = [build(read(s), ["a"], environment={}, cwd="/") for s in names["same_job"]]
    assert all(other == first for other in others)
