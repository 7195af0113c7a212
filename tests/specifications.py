"""Good and bad resource specifications, one table for the suites with and without Flux.

A good row says what the specification must become in a jobspec, and which options of ``flux run``
ask for the same. A bad row says which key is to blame, and words that the error must contain.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BAD_NUMBERS: list[Any] = [-1, -0.5, float("nan"), float("inf"), -float("inf"), 1e10, 10**400]
BAD_SECONDS: list[Any] = ["soon", [1], *BAD_NUMBERS]
"""What no parameter that is a number of seconds may be."""


@dataclass(frozen=True)
class Good:
    """`expected` maps a dotted path in the jobspec to what must be there."""

    spec: dict[str, Any]
    flux_run: tuple[str, ...]
    expected: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bad:
    """`words` must all be in the error, beside the key and its value."""

    spec: dict[str, Any]
    key: str
    words: tuple[str, ...]


def slot(count: int, cores: int = 1, gpus: int = 0) -> dict[str, Any]:
    """The jobspec's slot of one task."""
    inside = [{"type": "core", "count": cores}]
    if gpus:
        inside.append({"type": "gpu", "count": gpus})
    return {"type": "slot", "count": count, "label": "task", "with": inside}


def nodes(count: int, inside: dict[str, Any], exclusive: bool = False) -> dict[str, Any]:
    """The jobspec's nodes around a slot."""
    node: dict[str, Any] = {"type": "node", "count": count, "with": [inside]}
    return {**node, "exclusive": True} if exclusive else node


RES, COUNT, SYS = "resources.0", "tasks.0.count", "attributes.system"
OPTIONS = f"{SYS}.shell.options"

GOOD = [
    Good({}, (), {RES: slot(1), COUNT: {"per_slot": 1}, f"{SYS}.duration": 0}),
    # -- how many of what
    Good({"num_tasks": 4}, ("-n4",), {RES: slot(4)}),
    Good({"cores_per_task": 3}, ("-c3",), {RES: slot(1, 3)}),
    Good({"num_tasks": 2, "cores_per_task": 3}, ("-n2", "-c3"), {RES: slot(2, 3)}),
    Good({"gpus_per_task": 1}, ("-g1",), {RES: slot(1, 1, 1)}),
    Good({"gpus_per_task": 0}, ("-n1",), {RES: slot(1)}),
    Good(
        {"num_tasks": 8, "gpus_per_task": 2, "cores_per_task": 4}, ("-n8", "-g2", "-c4"), {RES: slot(8, 4, 2)}
    ),
    Good({"num_nodes": 2, "num_tasks": 4}, ("-N2", "-n4"), {RES: nodes(2, slot(2)), COUNT: {"per_slot": 1}}),
    Good({"num_nodes": 3, "num_tasks": 5}, ("-N3", "-n5"), {RES: nodes(3, slot(2)), COUNT: {"total": 5}}),
    Good({"num_nodes": 1, "num_tasks": 1}, ("-N1", "-n1"), {RES: nodes(1, slot(1))}),
    Good({"num_nodes": 2}, ("-N2",), {RES: nodes(2, slot(1), exclusive=True)}),
    Good({"num_nodes": 2, "cores_per_task": 4}, ("-N2", "-c4"), {RES: nodes(2, slot(1, 4), exclusive=True)}),
    Good(
        {"num_nodes": 2, "num_tasks": 4, "exclusive": True},
        ("-N2", "-n4", "-x"),
        {RES: nodes(2, slot(2), exclusive=True)},
    ),
    Good({"num_nodes": 2, "num_tasks": 2, "exclusive": False}, ("-N2", "-n2"), {RES: nodes(2, slot(1))}),
    Good({"num_nodes": None, "num_tasks": 2, "queue": None}, ("-n2",), {RES: slot(2)}),
    # -- MPIExecutor's keys: the nodes of a task are its own
    Good(
        {"num_nodes": 2, "ranks_per_node": 4},
        ("-N2", "-n8", "-x"),
        {RES: nodes(2, slot(4), exclusive=True)},
    ),
    Good({"num_nodes": 2, "num_ranks": 4}, ("-N2", "-n4", "-x"), {RES: nodes(2, slot(2), exclusive=True)}),
    Good({"num_nodes": 2, "num_ranks": 4, "ranks_per_node": 2}, ("-N2", "-n4", "-x")),
    Good({"num_nodes": 2, "num_ranks": 3, "ranks_per_node": 2}, ("-N2", "-n3", "-x"), {COUNT: {"total": 3}}),
    Good({"num_ranks": 4}, ("-n4",), {RES: slot(4)}),
    Good({"num_ranks": "4", "ranks_per_node": "2"}, ("-N2", "-n4", "-x")),
    Good({"num_ranks": 5, "ranks_per_node": 2}, ("-N3", "-n5", "-x"), {COUNT: {"total": 5}}),
    Good({"num_nodes": 2, "ranks_per_node": 1, "launcher_options": ""}, ("-N2", "-n2", "-x")),
    Good({"num_nodes": 2, "num_ranks": 4, "exclusive": False}, ("-N2", "-n4")),
    # -- how long, where, for whom
    Good({"duration": 90}, ("-t90s",), {f"{SYS}.duration": 90}),
    Good({"duration": 1.5}, ("-t1.5s",), {f"{SYS}.duration": 1.5}),
    Good({"duration": "5m"}, ("-t5m",), {f"{SYS}.duration": 300}),
    Good({"duration": "90"}, ("-t90s",), {f"{SYS}.duration": 90}),
    Good({"duration": "1.5h"}, ("-t1.5h",), {f"{SYS}.duration": 5400}),
    Good({"duration": "250ms"}, ("-t250ms",), {f"{SYS}.duration": 0.25}),
    Good({"duration": datetime.timedelta(days=2)}, ("-t2d",), {f"{SYS}.duration": 172800}),
    Good({"duration": 0}, ("-t0",), {f"{SYS}.duration": 0}),
    Good({"urgency": 20}, ("--urgency=20",)),
    Good({"priority": 0}, ("--urgency=16",)),
    Good({"priority": -4.5}, ("--urgency=20",)),
    Good({"priority": 100}, ("--urgency=1",)),
    Good({"urgency": "hold"}, ("--urgency=hold",)),
    Good({"queue": "debug"}, ("--queue=debug",), {f"{SYS}.queue": "debug"}),
    Good({"bank": "physics"}, ("--bank=physics",), {f"{SYS}.bank": "physics"}),
    Good({"name": "relax ƒ1"}, ("--job-name=relax ƒ1",), {f"{SYS}.job.name": "relax ƒ1"}),
    Good({"nested": True, "num_tasks": 1}, ("-n1",)),
    Good({"cwd": "/usr"}, ("--cwd=/usr",), {f"{SYS}.cwd": "/usr"}),
    Good({"cwd": Path("/usr/lib")}, ("--cwd=/usr/lib",), {f"{SYS}.cwd": "/usr/lib"}),
    # -- constraints and dependencies
    Good({"constraint": "gpu"}, ("--requires=gpu",), {f"{SYS}.constraints": {"properties": ["gpu"]}}),
    Good(
        {"constraint": "gpu and not host:node[1-4]"},
        ("--requires=gpu and not host:node[1-4]",),
        {f"{SYS}.constraints": {"and": [{"properties": ["gpu"]}, {"not": [{"hostlist": ["node[1-4]"]}]}]}},
    ),
    Good({"constraint": ["a,b", "rank:0|rank:2-3"]}, ("--requires=a,b", "--requires=rank:0|rank:2-3")),
    Good({"constraint": {"properties": ["a", "^b"]}}, ("--requires=a,^b",)),
    Good(
        {"dependency": "afterok:ƒ2oLkTLb"},
        ("--dependency=afterok:ƒ2oLkTLb",),
        {f"{SYS}.dependencies": [{"scheme": "afterok", "value": "ƒ2oLkTLb"}]},
    ),
    Good(
        {"dependency": ["afterany:12", "singleton"]}, ("--dependency=afterany:12", "--dependency=singleton")
    ),
    Good({"dependency": {"scheme": "begin-time", "value": "7.5"}}, ("--dependency=begin-time:7.5",)),
    Good({"dependency": "string:a?x=1&y=2.5&z=a&z=b"}, ("--dependency=string:a?x=1&y=2.5&z=a&z=b",)),
    # -- environment
    Good(
        {"environment": {"ONE": "1", "TWO": "x y"}},
        ("--env=ONE=1", "--env=TWO=x y"),
        {f"{SYS}.environment.ONE": "1"},
    ),
    Good({"environment": {"GONE_1": None}}, ("--env=-GONE_1",)),
    Good({"environment": ["-GONE_*", "-/KEPT$/"]}, ("--env=-GONE_*", "--env=-/KEPT$/")),
    Good({"environment": ["-*", "KEPT", "/GONE/"]}, ("--env=-*", "--env=KEPT", "--env=/GONE/")),
    Good(
        {"environment": ["X=a", "X=${X}b:$KEPT:$$", "Y={{id}}"]},
        ("--env=X=a", "--env=X=${X}b:$KEPT:$$", "--env=Y={{id}}"),
        {f"{SYS}.environment.X": "ab:kept:$", f"{OPTIONS}.env-expand": {"Y": "{{id}}"}},
    ),
    Good({"environment": "-KEPT"}, ("--env=-KEPT",)),
    # -- options and attributes
    Good({"shell_options": {"mpi": "none"}}, ("-ompi=none",), {f"{OPTIONS}.mpi": "none"}),
    Good(
        {"shell_options": {"cpu-affinity": "per-task", "gpu-affinity": "per-task", "exit-timeout": "none"}},
        ("-ocpu-affinity=per-task", "-ogpu-affinity=per-task", "-oexit-timeout=none"),
    ),
    Good(
        {
            "shell_options": {
                "output.mode": "append",
                "output.limit": "1M",
                "verbose": 2,
                "x": {"y": [1, None]},
            }
        },
        ("-ooutput.mode=append", "-ooutput.limit=1M", "-overbose=2", '-ox={"y":[1,null]}'),
        {f"{OPTIONS}.output": {"mode": "append", "limit": "1M"}},
    ),
    Good(
        {"attributes": {"project": "x", "system.a.b": 1, "user.note": "n", ".user.c": True}},
        ("-Sproject=x", "-Ssystem.a.b=1", "-Suser.note=n", "-S.user.c=true"),
        {f"{SYS}.project": "x", f"{SYS}.a": {"b": 1}, "attributes.user": {"note": "n", "c": True}},
    ),
    Good(
        {"attributes": {"attributes.user.x": {"y": 1}, "user.x.z": 2}},
        ('-S.user.x={"y":1}', "-S.user.x.z=2"),
        {"attributes.user.x": {"y": 1, "z": 2}},
    ),
]

BAD = [
    # -- counts
    Bad({"num_tasks": 0}, "num_tasks", ("integer, 1 or more",)),
    Bad({"num_tasks": -1}, "num_tasks", ("integer, 1 or more",)),
    Bad({"num_tasks": 2.0}, "num_tasks", ("integer, 1 or more",)),
    Bad({"num_tasks": "4"}, "num_tasks", ("integer, 1 or more",)),
    Bad({"num_tasks": True}, "num_tasks", ("integer, 1 or more",)),
    Bad({"num_tasks": 2**31}, "num_tasks", ("integer, 1 or more",)),
    Bad({"cores_per_task": 0}, "cores_per_task", ("integer, 1 or more",)),
    Bad({"gpus_per_task": -1}, "gpus_per_task", ("integer, 0 or more",)),
    Bad({"num_nodes": 0}, "num_nodes", ("integer, 1 or more",)),
    Bad({"num_nodes": 3, "num_tasks": 2}, "num_nodes", ("number of tasks, 2",)),
    Bad({"exclusive": True}, "exclusive", ("needs 'num_nodes'",)),
    Bad({"exclusive": 1, "num_nodes": 1}, "exclusive", ("True or False",)),
    # -- MPIExecutor's keys
    Bad({"ranks_per_node": 2}, "ranks_per_node", ("'num_nodes' or 'num_ranks'",)),
    Bad({"num_ranks": 9, "num_nodes": 2, "ranks_per_node": 4}, "num_ranks", ("at most 8",)),
    Bad({"num_ranks": 2, "num_nodes": 4}, "num_nodes", ("number of tasks, 2",)),
    Bad({"num_ranks": 2, "num_tasks": 2}, "num_tasks", ("'num_ranks'",)),
    Bad({"num_ranks": "two"}, "num_ranks", ("integer, 1 or more",)),
    Bad({"num_nodes": 2, "launcher_options": "--bind"}, "launcher_options", ("'shell_options'",)),
    # -- duration, urgency, names
    Bad({"duration": "five"}, "duration", ("'1.5h'",)),
    Bad({"duration": "5 m"}, "duration", ("'1.5h'",)),
    Bad({"duration": "-5m"}, "duration", ("'1.5h'",)),
    Bad({"duration": -1}, "duration", ("negative",)),
    Bad({"duration": "00:05:00"}, "duration", ("'1.5h'",)),
    Bad({"duration": "20000d"}, "duration", ("at most 1e+09 seconds",)),
    Bad({"duration": float("nan")}, "duration", ("finite",)),
    Bad({"duration": float("inf")}, "duration", ("finite", "0, for no limit")),
    Bad({"duration": "infinity"}, "duration", ("'1.5h'",)),
    Bad({"duration": True}, "duration", ("seconds",)),
    Bad({"urgency": 32}, "urgency", ("0 to 31", "'hold'")),
    Bad({"urgency": -1}, "urgency", ("0 to 31",)),
    Bad({"urgency": "high"}, "urgency", ("0 to 31", "'expedite'")),
    Bad({"queue": ""}, "queue", ("not empty",)),
    Bad({"queue": 3}, "queue", ("string",)),
    Bad({"bank": ["a"]}, "bank", ("string",)),
    Bad({"name": ""}, "name", ("not empty",)),
    Bad({"nested": 1}, "nested", ("True", "False")),
    Bad({"cwd": 5}, "cwd", ("path",)),
    # -- constraints and dependencies
    Bad({"constraint": ""}, "constraint", ("it ends",)),
    Bad({"constraint": "gpu and"}, "constraint", ("it ends",)),
    Bad({"constraint": "(gpu"}, "constraint", ("position 0", "not closed")),
    Bad({"constraint": "gpu)"}, "constraint", ("')' at position 3",)),
    Bad({"constraint": "host:'node"}, "constraint", ("quote",)),
    Bad({"constraint": "host:"}, "constraint", ("missing after 'host:'",)),
    Bad({"constraint": "memory:64G"}, "constraint", ("'memory'", "properties, hostlist, ranks")),
    Bad({"constraint": "host:node[3-1]"}, "constraint", ("hostlist",)),
    Bad({"constraint": "rank:all"}, "constraint", ("ranks",)),
    Bad({"constraint": {"properties": "gpu"}}, "constraint", ("list",)),
    Bad({"constraint": 7}, "constraint", ("--requires", "RFC 31")),
    Bad({"dependency": "after ok"}, "dependency", ("scheme:value",)),
    Bad({"dependency": []}, "dependency", ("RFC 26",)),
    Bad({"dependency": {"scheme": "afterok"}}, "dependency", ("'value'",)),
    Bad({"dependency": {"scheme": "afterok", "value": 12}}, "dependency", ("string",)),
    # -- environment, options, attributes
    Bad({"environment": {"A": 1}}, "environment", ("value of A", "string")),
    Bad({"environment": {"A=B": "1"}}, "environment", ("'A=B'", "name")),
    Bad({"environment": 5}, "environment", ("--env",)),
    Bad({"environment": [""]}, "environment", ("empty",)),
    Bad({"environment": ["-/(/"]}, "environment", ("regular expression",)),
    Bad({"environment": ["A=${B:-c}"]}, "environment", ("'$'",)),
    Bad({"environment": ["=1"]}, "environment", ("name before '='",)),
    Bad({"shell_options": "mpi=none"}, "shell_options", ("mapping",)),
    Bad({"shell_options": {"a..b": 1}}, "shell_options", ("'a..b'", "dots")),
    Bad({"shell_options": {"a": 1, "a.b": 2}}, "shell_options", ("'a.b'", "below")),
    Bad({"shell_options": {"a.b": 2, "a": 1}}, "shell_options", ("'a'", "twice")),
    Bad({"shell_options": {"a": {1, 2}}}, "shell_options", ("JSON",)),
    Bad({"shell_options": {"a": float("nan")}}, "shell_options", ("JSON",)),
    Bad({"attributes": {".other.x": 1}}, "attributes", ("'.other.x'", "'system.'", "'user.'")),
    Bad({"attributes": {"duration": 5}}, "attributes", ("'duration'", "the key 'duration' is for")),
    Bad({"attributes": {"system.shell": {}}}, "attributes", ("the key 'shell_options' is for",)),
    # -- keys that are not ours
    Bad({"num_task": 2}, "num_task", ("'num_tasks' is",)),
    Bad({"cores-per-task": 2}, "cores-per-task", ("'cores_per_task' is",)),
    Bad({"wibble": 2}, "wibble", ("not a key here",)),
    Bad({"wibble": None}, "wibble", ("not a key here",)),
    Bad({"priority": "high"}, "priority", ("must be a number", "smaller goes first")),
    Bad({"priority": float("nan")}, "priority", ("a number",)),
    Bad({"priority": 1, "urgency": 4}, "priority", ("'urgency'", "order")),
    Bad({"cores": 2, "memory": 100, "disk": 5}, "cores", ("'cores_per_task'",)),
    Bad({"memory": 100}, "memory", ("'exclusive'", "'constraint'")),
    Bad({"disk": 100}, "disk", ("'constraint'",)),
    Bad({"gpus": 1}, "gpus", ("'gpus_per_task'",)),
    Bad({"walltime": 60}, "walltime", ("'duration'",)),
]
