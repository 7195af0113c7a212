"""Make jobspecs of a command and the options of the command line, with templates filled in."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from parsl_flux_bulk.bulk.templates import Method, Template, TemplateError, Values
from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.per_resource import PER_RESOURCE, integer, per_resource
from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.base import JobRequest
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.duration import parse_duration
from parsl_flux_bulk.jobspec.job_environment import filtered_limits
from parsl_flux_bulk.jobspec.jobspec import DEFAULT_URGENCY, Demand
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.jobspec.validate_resource_keys import URGENCY_NAMES

COPY_VARIABLE = "FLUX_JOB_CC"
"""Environment variable that numbers the copies of a command, as ``flux submit --cc`` does."""

FLAGS = {
    "queue": "-q", "bank": "-B", "ntasks": "-n", "nodes": "-N", "cores_per_task": "-c", "gpus_per_task": "-g",
    "cores": "--cores=", "tasks_per_node": "--tasks-per-node=", "tasks_per_core": "--tasks-per-core=",
    "gpus_per_node": "--gpus-per-node=", "time_limit": "-t", "duration": "--duration=",
    "env": "--env=", "urgency": "--urgency=", "setopt": "-o",
    "setattr": "--setattr=", "job_name": "--job-name=", "input": "--input=", "output": "--output=",
    "error": "--error=", "dependency": "--dependency=", "taskmap": "--taskmap=",
    "requires": "--requires=", "cwd": "--cwd=", "begin_time": "--begin-time=", "signal": "--signal=",
    "rlimit": "--rlimit=",
}  # fmt: skip
"""The options that may have templates, by their names in the parser; in the order in which they are shown."""

_SIZES = ("ntasks", "nodes", "cores_per_task", "gpus_per_task", *PER_RESOURCE)

_OPTION_OF_KEY = {
    "num_tasks": "--ntasks", "num_nodes": "--nodes", "cores_per_task": "--cores-per-task",
    "gpus_per_task": "--gpus-per-task", "exclusive": "--exclusive", "duration": "--time-limit",
    "urgency": "--urgency", "queue": "--queue", "bank": "--bank", "constraint": "--requires",
    "dependency": "--dependency", "name": "--job-name", "environment": "--env", "cwd": "--cwd",
    "shell_options": "--setopt", "attributes": "--setattr",
}  # fmt: skip
"""The options that become keys of a resource specification."""

SPECIAL_FILES = ("/dev/null", "/dev/stdout", "/dev/stderr", "/dev/tty")


class Filled(NamedTuple):
    """The options of one job, with inputs in the place of templates."""

    options: Mapping[str, Any]
    changed: tuple[str, ...]
    """Options that had templates, as ``--name=value``."""


class JobOptions:
    """The options of a command, whose templates are filled in for each job.

    Raises
    ------
    UnusableInput
        If an option is not valid, or a template is none.
    """

    def __init__(self, options: argparse.Namespace, methods: Mapping[str, Method]) -> None:
        self.templates: dict[str, Template | list[Template]] = {}
        self._plain = {name: getattr(options, name) for name in FLAGS}
        self._plain.update(
            {
                name: getattr(options, name)
                for name in ("exclusive", "open_mode", "label_io", "unbuffered", "output_dir")
            }
        )
        if not options.literal:
            for name, flag in FLAGS.items():
                self._read(name, flag.rstrip("="), methods)
        self._environment = dict(os.environ)
        self._cwd = os.getcwd()
        _check_flags(options.flags)
        self._base = self._build_base()

    @property
    def all_templates(self) -> list[Template]:
        """The templates of all options."""
        found = self.templates.values()
        return [item for entry in found for item in (entry if isinstance(entry, list) else [entry])]

    @property
    def demand(self) -> Demand | None:
        """What each job needs; None if the jobs differ in it."""
        if not self.templates.keys().isdisjoint(_SIZES):
            return None
        try:
            return self._build(["true"], self._plain, {}).jobspec.demand
        except JobspecError:
            return None

    def fill(self, values: Values) -> Filled:
        """Fill the options of one job."""
        if not self.templates:
            return Filled(self._plain, ())
        filled = dict(self._plain)
        changed = []
        for name, template in self.templates.items():
            value: str | list[str]
            if isinstance(template, list):
                value = [item.fill(values) for item in template]
                changed += [
                    FLAGS[name] + one for one, item in zip(value, template, strict=True) if item.names
                ]
            else:
                value = template.fill(values)
                changed.append(FLAGS[name] + value)
            filled[name] = value
        return Filled(filled, tuple(changed))

    def request(self, command: list[str], filled: Filled, cc: int | None = None) -> JobRequest:
        """Return the job that runs `command`.

        Parameters
        ----------
        cc : int or None
            The value of FLUX_JOB_CC.

        Raises
        ------
        JobspecError
            If no jobspec can say what the options ask for.
        """
        own = {} if cc is None else {COPY_VARIABLE: str(cc)}
        if self._base is None or not all(word.isascii() and "\0" not in word for word in command):
            return self._build(command, filled.options, own)
        data, urgency = self._base
        jobspec = Jobspec({**data, "tasks": [{**data["tasks"][0], "command": command}]})
        if own:
            jobspec = jobspec.with_system(environment={**jobspec.environment, **own})
        return JobRequest(jobspec, urgency)

    def _build_base(self) -> tuple[dict[str, Any], int] | None:
        """Build what all jobs have in common; None if the options differ from job to job."""
        if self.templates:
            return None
        try:
            request = self._build(["true"], self._plain, {})
        except JobspecError as error:
            raise UnusableInput(error.args[0]) from error
        return request.jobspec.data, request.urgency

    def _build(self, command: list[str], options: Mapping[str, Any], own: dict[str, str]) -> JobRequest:
        try:
            geometry = per_resource(options)
            resources = Resources.from_specification(_specification(options, per_task=geometry is None))
        except JobspecError:
            raise
        except Exception as error:  # Parsl's InvalidResourceSpecification; importing it would take 0.3 s
            raise JobspecError(_of_options(getattr(error, "message", str(error)))) from error
        jobspec = build(
            resources,
            command,
            environment=self._environment,
            cwd=self._cwd,
            stdin=options["input"],
            stdout=options["output"],
            stderr=options["error"],
            rlimits=_limits(options["rlimit"]),
            shell_options={**_output_options(options), **(geometry.shell_options if geometry else {})},
            own_environment=own,
        )
        if geometry is not None:
            jobspec = Jobspec({**jobspec.data, "resources": geometry.resources})
        return JobRequest(jobspec, resources.urgency)

    def _read(self, name: str, flag: str, methods: Mapping[str, Method]) -> None:
        value = self._plain[name]
        try:
            if isinstance(value, str):
                template = Template(value, flag, methods)
                if template.names:
                    self.templates[name] = template
            elif value:
                templates = [Template(item, flag, methods) for item in value]
                if any(template.names for template in templates):
                    self.templates[name] = templates
        except TemplateError as error:
            raise UnusableInput(str(error)) from error


def urgency_number(text: str | None) -> int:
    """Return the urgency that an option names, by number or name."""
    return URGENCY_NAMES[text] if text in URGENCY_NAMES else int(text or DEFAULT_URGENCY)


def refuse_one_file(options: argparse.Namespace) -> None:
    """Raise UnusableInput if several jobs would overwrite one file of output."""
    for option, name in (("--output", options.output), ("--error", options.error)):
        # Without braces, nothing in the name differs from job to job.
        one_file = name is not None and name not in SPECIAL_FILES and "{" not in name
        if one_file and options.open_mode != "append":
            raise UnusableInput(
                f"{option} {name!r} is one file for all jobs, which would overwrite each other's output: "
                "put a template such as {seq}, {cc} or {{id}} in it, or give --open-mode append"
            )


def _specification(options: Mapping[str, Any], *, per_task: bool) -> dict[str, Any]:
    """Return the resource specification that the options ask for."""
    dependencies = list(options["dependency"] or ())
    if options["begin_time"]:
        dependencies.append(f"begin-time:{_begin_time(options['begin_time'])}")
    given = {
        "num_tasks": integer(options, "ntasks"),
        "cores_per_task": integer(options, "cores_per_task"),
        "gpus_per_task": integer(options, "gpus_per_task"),
        "num_nodes": integer(options, "nodes") if per_task else None,
        "exclusive": (options["exclusive"] or None) if per_task else None,
        "duration": _duration(options),
        "urgency": _urgency(options["urgency"]),
        "queue": options["queue"],
        "bank": options["bank"],
        "constraint": options["requires"],
        "dependency": dependencies or None,
        "name": options["job_name"],
        "environment": options["env"],
        "cwd": options["cwd"],
        "shell_options": _shell_options(options),
        "attributes": _pairs(options["setattr"], "--setattr"),
    }
    return {key: value for key, value in given.items() if value is not None}


def _limits(rules: list[str] | None) -> dict[str, int] | None:
    try:
        return None if rules is None else filtered_limits(rules)
    except ValueError as error:
        raise JobspecError(f"--rlimit: {error}") from None


def _urgency(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else text


def _duration(options: Mapping[str, Any]) -> float | str | None:
    limit = options["time_limit"]
    if limit is None:
        return _seconds(options["duration"], "--duration")
    try:
        return float(limit) * 60  # as in flux submit; the key itself is in seconds
    except ValueError:
        return _seconds(limit, "--time-limit")


def _seconds(text: str | None, option: str) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise JobspecError(f"{option} {error}, not {text!r}") from None


def _of_options(message: str) -> str:
    """Return what is wrong with a resource specification in terms of options."""
    message = message.partition(". Valid keys: ")[0]
    for key, option in _OPTION_OF_KEY.items():
        message = message.replace(repr(key), option)
    return message


def _begin_time(text: str) -> float:
    if not text.startswith("+"):
        raise JobspecError(f"--begin-time must be a time from now, such as '+30m', not {text!r}")
    return time.time() + (_seconds(text[1:], "--begin-time") or 0.0)


def _shell_options(options: Mapping[str, Any]) -> dict[str, Any] | None:
    found = _pairs(options["setopt"], "--setopt") or {}
    if options["taskmap"]:
        scheme, _, value = options["taskmap"].partition(":")
        found["taskmap"] = {"scheme": scheme, "value": value}
    if options["signal"]:
        found["signal"] = _signal(options["signal"])
    return found or None


def _output_options(options: Mapping[str, Any]) -> dict[str, Any]:
    output: dict[str, Any] = {}
    stdout = options["output"] or options["output_dir"]  # whose files OutputDirectory names
    for stream, path in (("stdout", stdout), ("stderr", options["error"])):
        settings: dict[str, Any] = {}
        if options["label_io"] and path is not None:
            settings["label"] = True
        if options["unbuffered"]:
            settings["buffer"] = {"type": "none"}
        if settings:
            output[stream] = settings
    if options["unbuffered"]:
        output["batch-timeout"] = 0.05
    if options["open_mode"]:
        output["mode"] = options["open_mode"]
    return {"output": output} if output else {}


def _signal(text: str) -> dict[str, Any]:
    name, _, seconds = text.partition("@")
    try:
        number = (
            int(name)
            if name.isdigit()
            else signal.Signals[f"SIG{(name or 'USR1').upper().removeprefix('SIG')}"]
        )
        known = int(signal.Signals(number))
    except (KeyError, ValueError):
        raise JobspecError(f"--signal: {name!r} is not a signal; give one such as 'USR1@60s'") from None
    return {"signum": known, "timeleft": _seconds(seconds or "60", "--signal")}


def _pairs(items: list[str] | None, option: str) -> dict[str, Any] | None:
    """Return ``NAME=VALUE`` options as a dict; a value is JSON, or else text, and 1 if it is missing."""
    if not items:
        return None
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if name.startswith("^") and option == "--setattr":
            name, text = name[1:], _file(text, option)
            found[name] = _json(text, _refuse_file(item))
        else:
            found[name] = _json(text, str) if equals else 1
    return found


def _json(text: str, otherwise: Callable[[str], Any]) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return otherwise(text)


def _refuse_file(item: str) -> Callable[[str], Any]:
    def refuse(_: str) -> Any:
        raise JobspecError(f"--setattr {item!r}: the file is not JSON")

    return refuse


def _file(path: str, option: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise JobspecError(f"{option}: cannot read {path!r}: {error}") from error


def _check_flags(flags: list[str] | None) -> None:
    for flag in (flag for flags_ in flags or () for flag in flags_.split(",")):
        if flag != "waitable":
            raise UnusableInput(
                f"--flags: {flag!r} cannot be set here: jobs are 'waitable', and 'debug' and 'novalidate' "
                "are options of `flux submit`"
            )
