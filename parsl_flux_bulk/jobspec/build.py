"""Build a jobspec (RFC 25, version 1) from :class:`Resources` and a command.

Pure: the result depends on the arguments alone. Flux is not needed, and the environment of this
process is not read. For the same request, :func:`build` returns what ``flux run --dry-run`` prints.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.jobspec.environment import Environment, filter_environment
from parsl_flux_bulk.jobspec.jobspec import Jobspec, encode
from parsl_flux_bulk.jobspec.validate_jobspec import check_texts

if TYPE_CHECKING:
    from parsl_flux_bulk.jobspec.resources import Resources

logger = logging.getLogger(__name__)


def build(
    resources: Resources,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: str,
    name: str | None = None,
    stdin: str | None = None,
    stdout: str | None = None,
    stderr: str | None = None,
    per_node: bool = False,
    rlimits: Mapping[str, int] | None = None,
    shell_options: Mapping[str, object] | None = None,
    own_environment: Mapping[str, str] | None = None,
) -> Jobspec:
    """Build the jobspec that runs `command` on every task of `resources`.

    Parameters
    ----------
    environment : mapping of str to str
        The environment that `resources` changes.
    cwd : str
        Working directory, unless `resources` names one, which may be relative to this one.
    name : str or None
        Name of the job, unless `resources` has one.
    stdin, stdout, stderr : str or None
        Files, opened where the job runs and from its working directory; they may hold mustache
        templates such as ``{{id}}``. Without `stdout` Flux keeps the output; without `stderr`
        errors go where the output goes.
    per_node : bool
        Run one process on each node, which gets all slots of the node, instead of one for each task.
    rlimits : mapping of str to int or None
        Soft limits by lower-case name (``nofile``), -1 for unlimited; None leaves those of the
        instance.
    shell_options : mapping or None
        Further shell options, nested, not dotted. Those of `resources` come on top.
    own_environment : mapping or None
        Variables to set that `resources` cannot change.

    Returns
    -------
    Jobspec
        Without the urgency, which is a part of the request to submit it.

    Raises
    ------
    JobspecError
        The command is not a list of strings, the environment rules of `resources` cannot be
        applied, or a string cannot be sent to Flux.

    See also
    --------
    RFC 25, https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_25.html
    """
    if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
        raise JobspecError(f"must be a list of at least one string, not {command!r}", "tasks[0].command")
    variables, templates = _environment(resources, environment)
    variables.update(own_environment or {})
    system: dict[str, Any] = {"duration": resources.duration, "environment": variables}
    system["cwd"] = working_directory(resources, cwd)
    options = _shell_options(resources, stdin, stdout, stderr, per_node, rlimits, shell_options, templates)
    if options:
        system["shell"] = {"options": options}
    if name := resources.name or name:
        system["job"] = {"name": name}
    if resources.queue:
        system["queue"] = resources.queue
    if resources.bank:
        system["bank"] = resources.bank
    if resources.constraint:
        system["constraints"] = json.loads(resources.constraint)
    if resources.dependencies:
        system["dependencies"] = json.loads(resources.dependencies)
    attributes: dict[str, Any] = {"system": system}
    if resources.attributes:
        _merge(attributes, json.loads(resources.attributes))
    jobspec = {
        "resources": [_resource(resources)],
        "tasks": [{"command": list(command), "slot": "task", "count": _task_count(resources)}],
        "attributes": attributes,
        "version": 1,
    }
    text = encode(jobspec)
    if not text.isascii() or "\\u0000" in text:
        _drop_undecodable(variables)
        check_texts(jobspec)
    return Jobspec(jobspec)


def _resource(resources: Resources) -> dict[str, Any]:
    inside = [{"type": "core", "count": resources.cores_per_task}]
    if resources.gpus_per_task:
        inside.append({"type": "gpu", "count": resources.gpus_per_task})
    slot = {"type": "slot", "count": resources.slots_per_node, "with": inside, "label": "task"}
    if resources.num_nodes is None:
        return slot
    node: dict[str, Any] = {"type": "node", "count": resources.num_nodes, "with": [slot]}
    if resources.exclusive:
        node["exclusive"] = True
    return node


def _task_count(resources: Resources) -> dict[str, int]:
    if resources.num_nodes and resources.num_tasks % resources.num_nodes:
        return {"total": resources.num_tasks}
    return {"per_slot": 1}


def _environment(resources: Resources, environment: Mapping[str, str]) -> Environment:
    try:
        variables, templates = filter_environment(resources.environment_rules, environment)
    except ValueError as error:
        raise JobspecError(str(error), "attributes.system.environment") from None
    for name, value in resources.environment:
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    return Environment(variables, templates)


def working_directory(resources: Resources, cwd: str) -> str:
    """Return the directory of the job; may contain a mustache template such as ``{{tmpdir}}``."""
    directory = resources.cwd
    if directory is None:
        return cwd
    # A leading template stands for an absolute path, such as that of the job's temporary directory.
    if directory.startswith(("/", "{{")):
        return directory
    return f"{cwd.rstrip('/')}/{directory}"


def _shell_options(
    resources: Resources,
    stdin: str | None,
    stdout: str | None,
    stderr: str | None,
    per_node: bool,
    rlimits: Mapping[str, int] | None,
    shell_options: Mapping[str, object] | None,
    templates: Mapping[str, str],
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if per_node:
        options["per-resource"] = {"type": "node", "count": 1}
    if rlimits is not None:
        options["rlimit"] = dict(rlimits)
    if templates:
        options["env-expand"] = dict(templates)
    if stdin is not None:
        options["input"] = {"stdin": _file(stdin)}
    output = {key: _file(path) for key, path in (("stdout", stdout), ("stderr", stderr)) if path is not None}
    if output:
        options["output"] = output
    if shell_options:
        _merge(options, shell_options)
    if resources.shell_options:
        _merge(options, json.loads(resources.shell_options))
    return options


def _file(path: str) -> dict[str, str]:
    return {"type": "file", "path": path}


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Merge `more` into `into`, mapping by mapping; mappings are copied."""
    for key, value in more.items():
        if isinstance(value, Mapping):
            below = into.get(key)
            if not isinstance(below, dict):
                below = into[key] = {}
            _merge(below, value)
        else:
            into[key] = value


_dropped: set[str] = set()


def _drop_undecodable(variables: dict[str, str]) -> None:
    """Remove variables that are not UTF-8, which JSON cannot hold; log each once."""
    bad = [name for name, value in variables.items() if not (_is_utf8(name) and _is_utf8(value))]
    for name in bad:
        del variables[name]
        if name not in _dropped:
            _dropped.add(name)
            logger.warning("environment variable %r is not UTF-8 and is not passed to jobs", name)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
