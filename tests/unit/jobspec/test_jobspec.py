"""Jobspecs: what is built, and how a given one that is wrong is reported."""

from __future__ import annotations

import copy
import json
import logging
import time

import pytest
from helpers import cpu_unit
from specifications import GOOD, nodes, slot

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.resources import Resources

ENVIRONMENT = {"PATH": "/usr/bin", "HOME": "/home/me", "KEPT": "kept"}


def built(specification=None, command=("app", "x"), **options):
    resources = specification if isinstance(specification, Resources) else None
    resources = resources or Resources.from_specification(specification or {})
    options = {"environment": ENVIRONMENT, "cwd": "/work", **options}
    return build(resources, list(command), **options).data


# -- build -----------------------------------------------------------------------------------------


def test_the_smallest_jobspec():
    assert built() == {
        "version": 1,
        "resources": [slot(1)],
        "tasks": [{"command": ["app", "x"], "slot": "task", "count": {"per_slot": 1}}],
        "attributes": {"system": {"duration": 0, "cwd": "/work", "environment": ENVIRONMENT}},
    }


@pytest.mark.parametrize("row", GOOD, ids=lambda row: str(row.spec)[:60])
def test_what_is_built_is_valid(row):
    jobspec = build(Resources.from_specification(row.spec), ["a"], environment=ENVIRONMENT, cwd="/")
    assert Jobspec.parse(jobspec.text) == jobspec
    assert Jobspec.parse(jobspec.text.encode()) == jobspec


def test_files_limits_and_one_process_a_node():
    resources = Resources(num_tasks=8, num_nodes=2, cores_per_task=2)
    jobspec = built(
        resources,
        stdin="in",
        stdout="out-{{id}}",
        stderr="err",
        per_node=True,
        rlimits={"nofile": 1024, "stack": -1},
        shell_options={"exit-timeout": "none", "output": {"mode": "append"}},
    )
    assert jobspec["resources"] == [nodes(2, slot(4, 2))]
    assert jobspec["attributes"]["system"]["shell"]["options"] == {
        "per-resource": {"type": "node", "count": 1},
        "rlimit": {"nofile": 1024, "stack": -1},
        "exit-timeout": "none",
        "input": {"stdin": {"type": "file", "path": "in"}},
        "output": {
            "mode": "append",
            "stdout": {"type": "file", "path": "out-{{id}}"},
            "stderr": {"type": "file", "path": "err"},
        },
    }


def test_shell_options_of_the_specification_win():
    mine = {"exit-timeout": "none", "pmi": "simple"}
    specification = {"shell_options": {"exit-timeout": "5s", "output.mode": "append"}}
    options = built(specification, shell_options=mine, stdout="o")["attributes"]["system"]["shell"]["options"]
    assert options["exit-timeout"] == "5s"
    assert options["pmi"] == "simple"
    assert options["output"] == {"stdout": {"type": "file", "path": "o"}, "mode": "append"}
    assert mine == {"exit-timeout": "none", "pmi": "simple"}


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [(None, "/work"), ("sub/dir", "/work/sub/dir"), ("/abs", "/abs"), ("{{tmpdir}}", "{{tmpdir}}")],
)
def test_working_directory(cwd, expected):
    assert built({"cwd": cwd})["attributes"]["system"]["cwd"] == expected


def test_a_name_of_the_specification_wins():
    assert built(name="app")["attributes"]["system"]["job"] == {"name": "app"}
    assert built({"name": "mine"}, name="app")["attributes"]["system"]["job"] == {"name": "mine"}


def test_environment_of_the_specification():
    def environment(value):
        return built({"environment": value})["attributes"]["system"]["environment"]

    assert environment({"A": "$x{{y}}", "KEPT": None, "NOT_THERE": None}) == {
        "PATH": "/usr/bin",
        "HOME": "/home/me",
        "A": "$x{{y}}",
    }
    assert environment(["-*", "PATH=/opt:$PATH"]) == {"PATH": "/opt:/usr/bin"}
    assert ENVIRONMENT == {"PATH": "/usr/bin", "HOME": "/home/me", "KEPT": "kept"}


def test_a_rule_that_cannot_be_applied_fails_that_jobspec():
    with pytest.raises(JobspecError, match="NOT_SET is not set") as caught:
        built({"environment": ["A=$NOT_SET"]})
    assert caught.value.where == "attributes.system.environment"


def test_text_that_is_not_ascii_stays_readable():
    text = build(Resources(), ["écho", "ƒ"], environment={}, cwd="/tmp/ü").text
    assert "écho" in text
    assert Jobspec.parse(text).system["cwd"] == "/tmp/ü"


def test_a_variable_that_is_not_utf8_is_left_out_and_logged_once(caplog):
    caplog.set_level(logging.WARNING)
    environment = {"GOOD": "ü", "BAD_7Q": b"\xff".decode("utf-8", "surrogateescape")}
    for _ in range(2):
        assert built(environment=environment)["attributes"]["system"]["environment"] == {"GOOD": "ü"}
    assert [record.getMessage().count("BAD_7Q") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ([], "tasks[0].command"),
        ("true", "tasks[0].command"),
        (["sleep", 1], "tasks[0].command"),
        (["a", "b\0c"], "tasks[0].command[1]"),
        (["\udcff"], "tasks[0].command[0]"),
    ],
)
def test_commands_that_cannot_be_sent(command, where):
    with pytest.raises(JobspecError) as caught:
        build(Resources(), command, environment={}, cwd="/")
    assert caught.value.where == where


def test_building_is_fast_enough_for_thousands_a_second():
    resources = Resources.from_specification({"num_tasks": 4, "constraint": "gpu", "environment": {"A": "1"}})
    environment = {f"VARIABLE_{i}": "x" * 60 for i in range(100)}
    # On a busy machine, other processes take the caches away. Measured: 320 units.
    assert any(_time_of(200, resources, environment) < 200 * 3_000 * cpu_unit() for _ in range(5))


def _time_of(count, resources, environment):
    start = time.process_time()
    for _ in range(count):
        build(resources, ["app"], environment=environment, cwd="/")
    return time.process_time() - start


# -- parse -----------------------------------------------------------------------------------------


def changed(path, value):
    """The text of a good jobspec with the value at `path` replaced, or removed if it is `...`."""
    jobspec = copy.deepcopy(built({"num_nodes": 1, "num_tasks": 2}))
    *parents, last = path
    at = jobspec
    for key in parents:
        at = at.setdefault(key, {}) if isinstance(at, dict) else at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(jobspec)


SYSTEM = ("attributes", "system")
NODE = ("resources", 0)
SLOT = (*NODE, "with", 0)
TASK = ("tasks", 0)


@pytest.mark.parametrize(
    ("path", "value", "where", "words"),
    [
        (("version",), ..., "", "'version' is missing"),
        (("resources",), ..., "", "'resources' is missing"),
        (("tasks",), ..., "", "'tasks' is missing"),
        (("attributes",), ..., "", "'attributes' is missing"),
        (("task",), [], "task", "unknown key"),
        (("version",), 2, "version", "must be the integer 1, not 2"),
        (("version",), "1", "version", "integer 1"),
        (("version",), 1.0, "version", "integer 1"),
        (("resources",), {}, "resources", "list of resources, not an object"),
        (("resources",), [], "resources", "not be empty"),
        (NODE, "node", "resources[0]", "not a string"),
        ((*NODE, "type"), ..., "resources[0]", "'type' is missing"),
        ((*NODE, "type"), 1, "resources[0].type", "string"),
        ((*NODE, "count"), ..., "resources[0]", "'count' is missing"),
        ((*NODE, "count"), 0, "resources[0].count", "1 or more, not 0"),
        ((*NODE, "count"), -1, "resources[0].count", "not -1"),
        ((*NODE, "count"), "2", "resources[0].count", 'not "2"'),
        ((*NODE, "count"), 1.5, "resources[0].count", "not 1.5"),
        ((*NODE, "count"), {"min": 1}, "resources[0].count", "not an object"),
        ((*NODE, "exclusive"), "yes", "resources[0].exclusive", "true or false"),
        ((*NODE, "with"), {}, "resources[0].with", "list"),
        ((*NODE, "with"), None, "resources[0].with", "not null"),
        ((*NODE, "unit"), 5, "resources[0].unit", "string"),
        ((*SLOT, "label"), ..., "resources[0].with[0]", "'label' is missing"),
        ((*SLOT, "with", 0, "count"), 0, "resources[0].with[0].with[0].count", "1 or more"),
        ((*SLOT, "with", 0), {"type": "gpu", "count": -1}, "resources[0].with[0].with[0].count", "0 or more"),
        (("tasks",), {}, "tasks", "list of tasks"),
        (("tasks",), [], "tasks", "not be empty"),
        (TASK, "app", "tasks[0]", "object"),
        ((*TASK, "command"), ..., "tasks[0]", "'command' is missing"),
        ((*TASK, "command"), "app x", "tasks[0].command", "list of strings, not a string"),
        ((*TASK, "command"), [], "tasks[0].command", "not be empty"),
        ((*TASK, "command"), ["sleep", 1], "tasks[0].command[1]", "string, not an integer"),
        ((*TASK, "slot"), ..., "tasks[0]", "'slot' is missing"),
        ((*TASK, "slot"), 0, "tasks[0].slot", "string"),
        ((*TASK, "count"), ..., "tasks[0]", "'count' is missing"),
        ((*TASK, "count"), 1, "tasks[0].count", "'per_slot' and 'total'"),
        ((*TASK, "count"), {}, "tasks[0].count", "not nothing"),
        ((*TASK, "count"), {"per_slot": 1, "total": 1}, "tasks[0].count", "exactly one"),
        ((*TASK, "count"), {"per_resource": {}}, "tasks[0].count", "not 'per_resource'"),
        ((*TASK, "count"), {"total": 0}, "tasks[0].count.total", "1 or more"),
        ((*TASK, "count"), {"per_slot": 2}, "tasks[0].count.per_slot", "'total'"),
        ((*TASK, "attributes"), 1, "tasks[0].attributes", "object"),
        (("attributes",), [], "attributes", "object"),
        (SYSTEM, ..., "attributes", "'system' is missing"),
        (SYSTEM, 1, "attributes.system", "object"),
        (("attributes", "other"), {}, "attributes.other", "unknown key"),
        ((*SYSTEM, "duration"), ..., "attributes.system", "'duration' is missing"),
        ((*SYSTEM, "duration"), "5m", "attributes.system.duration", 'not "5m"'),
        ((*SYSTEM, "duration"), -1, "attributes.system.duration", "not be negative"),
        ((*SYSTEM, "duration"), 1e300, "attributes.system.duration", "at most 1e+09 seconds"),
        ((*SYSTEM, "duration"), 2**62, "attributes.system.duration", "at most 1e+09 seconds"),
        ((*SYSTEM, "duration"), True, "attributes.system.duration", "not true"),
        ((*SYSTEM, "dependencies"), {}, "attributes.system.dependencies", "list"),
        ((*SYSTEM, "dependencies"), [{"scheme": "x"}], "attributes.system.dependencies[0]", "'value'"),
        ((*SYSTEM, "dependencies"), ["x"], "attributes.system.dependencies[0]", "mapping"),
        ((*SYSTEM, "constraints"), [], "attributes.system.constraints", "mapping"),
        ((*SYSTEM, "constraints"), {"x": []}, "attributes.system.constraints", "'x'"),
        ((*SYSTEM, "constraints"), {"not": [{"ranks": ["3-1"]}]}, "attributes.system.constraints", "'3-1'"),
        ((*SYSTEM, "environment"), [], "attributes.system.environment", "object"),
        ((*SYSTEM, "cwd"), 1, "attributes.system.cwd", "string"),
        ((*SYSTEM, "shell"), "x", "attributes.system.shell", "object"),
        ((*SYSTEM, "shell", "options"), [], "attributes.system.shell.options", "object"),
        ((*TASK, "command"), ["a", "b\0"], "tasks[0].command[1]", "null character"),
        ((*TASK, "command"), ["a", "\udcff"], "tasks[0].command[1]", "Unicode"),
        ((*SYSTEM, "\udcff"), 1, "attributes.system (a key)", "Unicode"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(path, value, where, words):
    with pytest.raises(JobspecError) as caught:
        Jobspec.parse(changed(path, value))
    assert caught.value.where == where
    assert words in caught.value.reason
    assert str(caught.value) == (f"{where}: {caught.value.reason}" if where else caught.value.reason)


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", "line 1 column 1", "empty"),
        (" \n ", "line 2 column 2", "empty"),
        ("version: 1\nresources:\n", "line 1 column 1", "YAML"),
        ('{"version": 1,\n "tasks": [,]}', "line 2 column 12", "not JSON"),
        ('{"version": 1} x', "line 1 column 16", "not JSON: Extra data"),
        ('{"version": 1', "line 1 column 14", "not JSON"),
        (b'{"a":\n "\xff"}', "line 2 column 3", "not UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00\xb0", "line 1 column 9", "not UTF-8"),
        ("[]", "", "not a list"),
        ("null", "", "not null"),
        ('{"version": NaN}', "", "NaN"),
        ('{"version": 9223372036854775808}', "", "64 bits"),
        ('{"version": ' + "9" * 5000 + "}", "", "64 bits"),
        ('{"version": 1e999}', "", "too large"),
        ("[" * 100_000, "", "nested too deeply"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_text_that_is_no_jobspec(text, where, words):
    with pytest.raises(JobspecError) as caught:
        Jobspec.parse(text)
    assert caught.value.where == where
    assert words in caught.value.reason


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*TASK, "slot"), "another"),
        ((*TASK, "extra"), None),
        ((*TASK, "count"), {"total": 7}),
        (("tasks", slice(1, 1)), [{"command": ["b"], "slot": "task", "count": {"total": 1}}]),
        ((*NODE, "type"), "rack"),
        ((*NODE, "extra"), 1),
        ((*SLOT, "with", slice(1, 1)), [{"type": "gpu", "count": 0}]),
        (("attributes", "user"), None),
        ((*SYSTEM, "constraints"), {}),
        ((*SYSTEM, "environment"), ...),
        ((*SYSTEM, "cwd"), ...),
        ((*SYSTEM, "queue"), "nightly"),
    ],
)
def test_what_flux_runs_is_let_in(path, value):
    text = changed(path, value)
    assert Jobspec.parse(text).data == json.loads(text)
