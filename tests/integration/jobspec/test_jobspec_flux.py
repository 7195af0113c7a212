"""Our jobspecs against Flux's own: its command, its Python class, its validator, its parsers."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from unittest import mock

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from specifications import GOOD, Good

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.constraint import check_constraint, parse_constraint
from parsl_flux_bulk.jobspec.dependency import parse_dependency
from parsl_flux_bulk.jobspec.duration import LONGEST, parse_duration
from parsl_flux_bulk.jobspec.environment import filter_environment
from parsl_flux_bulk.jobspec.resources import Resources

pytestmark = pytest.mark.flux
read = Resources.from_specification
NESTED_BRACKETS = re.compile(r"\[[^\]]*\[")
"""We refuse them; Flux 0.88 reads some: x[3y[1-2] as x003."""
few = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def flux_utils():
    """Flux's own readers of option texts; where they live is Flux's affair."""
    return pytest.importorskip("flux.job._utils", reason="this Flux keeps its option readers elsewhere")


# -- flux run --dry-run ----------------------------------------------------------------------------


def dry_run(*options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PYTEST_"))}
    environment.update(KEPT="kept", GONE_1="1", GONE_2="2")
    done = subprocess.run(
        ["flux", "run", "--dry-run", *options, "app", "x"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def submitter():
    """What `flux run` takes over from the process that submits."""
    system = dry_run()["attributes"]["system"]
    rlimits = system["shell"]["options"]["rlimit"]
    return {"environment": system["environment"], "cwd": system["cwd"], "rlimits": rlimits}


@pytest.mark.parametrize("row", GOOD, ids=lambda row: str(row.spec)[:60])
def test_a_good_specification_gives_what_flux_run_gives(row: Good, submitter):
    from flux.job import validate_jobspec

    jobspec = build(read(row.spec), ["app", "x"], **submitter)
    assert jobspec.data == dry_run(*row.flux_run)
    validate_jobspec(jobspec.text, require_version=1)


def test_files_are_as_flux_run_has_them(submitter):
    jobspec = build(Resources(), ["app", "x"], stdin="in", stdout="out-{{id}}", stderr="err", **submitter)
    assert jobspec.data == dry_run("--input=in", "--output=out-{{id}}", "--error=err")


def test_one_process_a_node_is_as_flux_run_has_it(submitter):
    resources = Resources(num_tasks=2, num_nodes=2, cores_per_task=3)
    jobspec = build(resources, ["app", "x"], per_node=True, **submitter)
    assert jobspec.data == dry_run("-N2", "--cores=6", "--tasks-per-node=1")


# -- flux.job.JobspecV1 ----------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
geometries = st.fixed_dictionaries(
    {},
    optional={
        "num_tasks": st.integers(1, 200),
        "num_nodes": st.integers(1, 20),
        "cores_per_task": st.integers(1, 64),
        "gpus_per_task": st.integers(0, 8),
        "exclusive": st.booleans(),
        "duration": st.one_of(st.integers(0, 10**6), st.floats(0, 1e6)),
        "queue": text,
        "bank": text,
        "name": text,
    },
)


@few
@given(
    geometries,
    st.lists(text, min_size=1, max_size=5),
    st.dictionaries(text.filter(lambda name: "=" not in name), text, max_size=5),
    st.fixed_dictionaries({}, optional={"stdin": text, "stdout": text, "stderr": text}),
    st.one_of(st.none(), st.dictionaries(st.sampled_from(["nofile", "stack"]), st.integers(-1, 10**9))),
)
def test_a_jobspec_is_what_the_python_class_makes(specification, command, environment, files, rlimits):
    from flux.job import JobspecV1, validate_jobspec

    nodes, tasks = specification.get("num_nodes"), specification.get("num_tasks")
    assume(nodes is None or tasks is None or nodes <= tasks)
    assume(nodes is not None or not specification.get("exclusive"))
    assume(not {"none", "kvs"} & set(files.values()))  # Flux's words for "no file"
    ours = build(read(specification), command, environment=environment, cwd="/w", rlimits=rlimits, **files)
    request = {**specification, "num_tasks": tasks or nodes or 1}
    if nodes and not tasks:
        request.setdefault("exclusive", True)  # what flux run does before it calls the class
    theirs = JobspecV1.from_command(
        command,
        **request,
        environment=environment,
        cwd="/w",
        rlimits=rlimits,
        **{{"stdin": "input", "stdout": "output", "stderr": "error"}[k]: v for k, v in files.items()},
    )
    assert ours.data == json.loads(theirs.dumps())
    validate_jobspec(ours.text, require_version=1)
    assert Jobspec.parse(ours.text) == ours


# -- Flux's readers of options ---------------------------------------------------------------------


TERMS = [
    "a",
    "b,c",
    "rank:0-1",
    "rank:x",
    "host:x[1-3]",
    "host:x[3",
    "^e",
    "'q r'",
    "host:'n1'",
    "x:1",
    "a-b",
]
OTHERS = [" ", " ", "&", "&&", "and", "|", "||", "or", "or", "not", "-", "(", ")", "'", '"', "notx", "host:"]


@few
@given(st.lists(st.sampled_from([*TERMS, *OTHERS]), min_size=1, max_size=9), st.booleans())
@example(["a", "host:", "&", "a"], True)
def test_constraint_expressions_mean_what_they_mean_to_flux(flux_utils, words, spaced):
    from flux.job.Jobspec import _validate_constraint

    expression = (" " if spaced else "").join(words)
    assume(not NESTED_BRACKETS.search(expression))
    try:
        theirs = flux_utils.MiniConstraintParser().parse(expression)
        _validate_constraint(theirs)
    except Exception:
        theirs = None
    try:
        ours = parse_constraint(expression)
    except ValueError:
        ours = None
    assert ours == theirs


def compound(inner):
    joined = st.tuples(inner, st.sampled_from([" ", " and ", "&", "|", " or "]), inner).map("".join)
    return st.one_of(joined, inner.map("not {}".format), inner.map("({})".format))


@few
@given(st.recursive(st.sampled_from([*TERMS[:3], "host:n[1-2]", "-d", "'q r'"]), compound, max_leaves=8))
def test_sensible_constraint_expressions_mean_what_they_mean_to_flux(flux_utils, expression):
    assert parse_constraint(expression) == flux_utils.MiniConstraintParser().parse(expression)


@few
@given(
    st.text("aB1+.-:", max_size=8),
    st.text("aƒ1:/;.-", max_size=8),
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(["1", "2.5", "a", "1e3", ""])), max_size=4),
)
def test_dependencies_mean_what_they_mean_to_flux(flux_utils, scheme, value, options):
    uri = f"{scheme}:{value}" if value else scheme
    if options:
        uri += "?" + "&".join(f"{key}={setting}" for key, setting in options)
    try:
        theirs = flux_utils.URIArg(uri, "a dependency").entry
    except ValueError:
        theirs = None
    try:
        ours = parse_dependency(uri)
    except ValueError:
        ours = None
    assert ours == theirs


@few
@given(
    st.one_of(
        st.from_regex(r"[0-9]{0,3}\.?[0-9]{0,3}(e-[0-9])?(ms|s|m|h|d)?", fullmatch=True),
        st.text("1.smh-", max_size=4),
    )
)
def test_durations_mean_what_they_mean_to_flux(duration):
    from flux.util import parse_fsd

    try:
        ours = parse_duration(duration)
    except ValueError:
        try:
            theirs = parse_fsd(duration)
        except ValueError:
            return
        assert theirs > LONGEST  # which this package refuses as absurd
    else:
        assert ours == pytest.approx(parse_fsd(duration), rel=1e-6, abs=1e-6)


RULES = ["-*", "-A*", "-/B/", "-[AB]", "A", "A*", "/.B/", "*", "X=", "C={{id}}", "X=$", "nothing"]
SETTINGS = [f"{name}={value}" for name in "ABX" for value in ("v", "$A:w", "${X}", "$$A", "$NO")]


@few
@given(st.lists(st.sampled_from([*RULES, *SETTINGS]), max_size=5))
def test_environment_rules_mean_what_they_mean_to_flux(flux_utils, rules):
    environ = {"A": "1", "AB": "2", "B": "$A", "C": "{{4}}"}
    with mock.patch.dict(os.environ, environ, clear=True):
        try:
            theirs = flux_utils.get_filtered_environment(rules)
        except ValueError:
            theirs = None
    try:
        ours = filter_environment(rules, environ)
    except ValueError:
        ours = None
    assert ours == theirs


@few
@given(st.sampled_from(["ranks", "hostlist"]), st.from_regex(r"[a\[\],0-9 -]{0,7}", fullmatch=True))
def test_sets_of_ranks_and_hosts_are_what_they_are_to_flux(operator, value):
    from flux import hostlist, idset

    assume(not NESTED_BRACKETS.search(value))
    try:
        (idset if operator == "ranks" else hostlist).decode(value)
        theirs = True
    except ValueError:
        theirs = False
    try:
        check_constraint({operator: [value]})
        ours = True
    except ValueError:
        ours = False
    assert ours == theirs


# -- Flux's validator ------------------------------------------------------------------------------

BASE = build(
    read({"num_nodes": 2, "num_tasks": 4, "constraint": "a rank:1", "dependency": "x:y"}),
    ["app", "x"],
    environment={"A": "1"},
    cwd="/",
    stdout="o",
).data


def places(value, at=()):
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


junk = st.one_of(
    st.sampled_from(
        [None, True, 0, 1, -1, 3, 1.0, 0.5, "", "1", "x", [], {}, ["x"], [["x"]], {"x": 1}, "total"]
    ),
    st.sampled_from(
        [{"total": 3}, {"per_slot": 1}, {"min": 1}, {"not": []}, {"ranks": ["1"]}, {"ranks": [1]}]
    ),
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from([p for p in places(BASE) if p]), st.sampled_from(["replace", "remove", "add"]), junk)
def test_what_flux_takes_and_we_take_is_the_same(place, how, value):
    from flux.job import validate_jobspec

    jobspec = copy.deepcopy(BASE)
    at = jobspec
    for key in place[:-1]:
        at = at[key]
    if how == "remove":
        del at[place[-1]]
    elif how == "replace" or isinstance(at, list):
        at[place[-1]] = value
    else:
        at["type" if place[-1] != "type" else "with"] = value
    changed = json.dumps(jobspec)
    try:
        validate_jobspec(changed, require_version=1)
        theirs = True
    except Exception:  # it raises what its code stumbles over, AttributeError among others
        theirs = False
    try:
        Jobspec.parse(changed)
    except JobspecError as error:
        assert not theirs or is_stricter(error), (changed, str(error))
    else:
        assert theirs, changed


def is_stricter(error):
    """Whether this is one of the refusals that the module's docstring owns up to."""
    where, reason = error.where, error.reason
    return (
        where in ("attributes.system.cwd", "attributes.system.environment", "attributes.system.dependencies")
        or where.startswith("attributes.system.shell")
        or (where in ("resources", "tasks") and "must " in reason)
        or (where.endswith(".with") and "must be a list" in reason)
        or (where.endswith("per_slot") and "must be 1" in reason)
        or (where == "version" and "not True" in reason)
        or (where == "attributes.system.duration" and ("not true" in reason or "must be at most" in reason))
        or (where == "attributes.system.duration" and "must not be negative" in reason)
        or (where == "attributes.system.constraints" and ("must be a list" in reason or "a string" in reason))
    )


def finished(handle, jobspec):
    import flux.job

    try:
        job = flux.job.submit(handle, json.dumps(jobspec), waitable=True)
    except OSError as error:
        return f"refused: {error}"
    return "ran" if flux.job.wait(handle, job).success else "failed"


def test_what_we_refuse_beyond_flux_fails_as_a_job(flux_uri):
    import flux

    base = build(Resources(), ["true"], environment=dict(os.environ), cwd="/").data
    handle = flux.Flux(flux_uri)
    assert finished(handle, base) == "ran"
    for place, value in [
        (("tasks",), []),
        (("resources",), []),
        (("resources", 0, "with"), {}),
        (("tasks", 0, "count"), {"per_slot": 2}),
        (("attributes", "system", "dependencies"), ""),
        (("attributes", "system", "cwd"), 1),
        (("attributes", "system", "environment"), []),
        (("attributes", "system", "shell"), "x"),
        (("attributes", "system", "duration"), True),
        (("version",), True),
        (("attributes", "system", "constraints"), {"properties": "ab"}),
        (("tasks", 0, "command"), ["a\0b"]),
        (("tasks", 0, "command"), ["a\udcffb"]),
    ]:
        jobspec = copy.deepcopy(base)
        at = jobspec
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = value
        with pytest.raises(JobspecError):
            Jobspec.parse(json.dumps(jobspec))
        assert finished(handle, jobspec) != "ran", place
    # What RFC 25 forbids, but Flux runs: not refused here either.
    base["tasks"][0]["slot"] = "another"
    Jobspec.parse(json.dumps(base))
    assert finished(handle, base) == "ran"


def test_a_jobspec_with_every_kind_of_setting_runs(flux_uri, tmp_path):
    import flux

    specification = {
        "num_tasks": 1,
        "num_nodes": 1,
        "duration": "1m",
        "name": "ƒ everything",
        "constraint": "rank:0 and not gpu",
        "environment": ["ADDED=a", "EXPANDED={{id.dec}}"],
        "cwd": str(tmp_path),
        "shell_options": {"verbose": 0, "output.mode": "append"},
        "attributes": {"user.note": "n"},
    }
    script = 'echo "$PWD $ADDED $EXPANDED"'
    jobspec = build(
        read(specification), ["sh", "-c", script], environment=dict(os.environ), cwd="/", stdout="out"
    )
    assert finished(flux.Flux(flux_uri), jobspec.data) == "ran"
    where, added, expanded = (tmp_path / "out").read_text().split()
    assert (where, added) == (str(tmp_path), "a")
    assert expanded.isdigit()
