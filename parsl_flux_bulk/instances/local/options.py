"""The shell options (flux-shell-options(7)) that the embedded instance applies.

Other options are ignored, as Flux's shell ignores those that it does not know.
"""

from __future__ import annotations

import json

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.local.job_plan import Stream
from parsl_flux_bulk.jobspec.duration import parse_duration

DEFAULT_EXIT_TIMEOUT = 30.0
"""Seconds that the other tasks of a job have after the first one ended; flux-shell(1)."""


class JsonObject:
    """An object of a jobspec whose values are read by type.

    Every method takes a key and raises JobspecError with the value's place for another type.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise JobspecError(f"must be an object, not {json.dumps(value)}", where)
        self._values = value
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: object = None) -> object:
        """Return a value of any type."""
        return self._values.get(key, default)

    def fail(self, key: str, expected: str) -> JobspecError:
        """Return the error for a value that is not as expected."""
        value = json.dumps(self._values.get(key))
        return JobspecError(f"must be {expected}, not {value}", f"{self._where}.{key}")

    def object(self, key: str) -> JsonObject:
        """Return an object, empty by default."""
        return JsonObject(self._values.get(key, {}), f"{self._where}.{key}")

    def text(self, key: str) -> str:
        """Return a string that is not empty."""
        value = self._values.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, "a string, not empty")
        return value

    def positive(self, key: str, default: int, most: int = 2**31 - 1) -> int:
        """Return an integer from 1 to `most`."""
        value = self._values.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.fail(key, f"an integer from 1 to {most}")
        return value

    def seconds(self, key: str, default: float) -> float:
        """Return a duration."""
        try:
            return parse_duration(self._values.get(key, default))
        except ValueError as error:
            raise JobspecError(str(error), f"{self._where}.{key}") from None

    def strings(self) -> dict[str, str]:
        """Return the object itself, if all its values are strings."""
        for key, value in self._values.items():
            if not isinstance(value, str):
                raise self.fail(key, "a string")
        return dict(self._values)

    def integers(self) -> dict[str, int]:
        """Return the object itself, if all its values are integers."""
        for key, value in self._values.items():
            if not isinstance(value, int):
                raise self.fail(key, "an integer")
        return dict(self._values)


def output_streams(options: JsonObject) -> tuple[Stream | None, Stream | None]:
    """Return where standard output and error go; standard error defaults to where the output goes."""
    output = options.object("output")
    append = output.get("mode") == "append"
    stdout = _stream(output.object("stdout"), append, None)
    return stdout, _stream(output.object("stderr"), append, stdout)


def _stream(option: JsonObject, append: bool, default: Stream | None) -> Stream | None:
    label = bool(option.get("label", default is not None and default.label))
    kind = option.get("type", "file" if "path" in option or default else "kvs")
    if kind == "kvs":
        return None
    if kind != "file":
        raise option.fail("type", "'file' or 'kvs'")
    path = default.path if default and "path" not in option else option.text("path")
    return Stream(path, append, label)


def input_path(options: JsonObject) -> str:
    """Return the file that standard input comes from; "" for none."""
    stdin = options.object("input").object("stdin")
    return stdin.text("path") if stdin.get("type") == "file" else ""


def affinity(option: object) -> str:
    """Return what ``cpu-affinity`` or ``gpu-affinity`` asks for: on, per-task or off."""
    last = option.split(",")[-1] if isinstance(option, str) else ""  # "verbose,per-task"
    return last if last in ("off", "per-task") else "on"


def exit_timeout(options: JsonObject) -> float | None:
    """Return the seconds that the other tasks have after the first one ended; None for no limit."""
    if options.get("exit-timeout") == "none":
        return None
    return options.seconds("exit-timeout", DEFAULT_EXIT_TIMEOUT)


def warning_signal(options: JsonObject) -> list[float] | None:
    """Return the signal to send before the duration ends, and how many seconds before."""
    if not options.get("signal"):
        return None
    signal = JsonObject({}, "") if options.get("signal") in (True, 1) else options.object("signal")
    return [signal.positive("signum", 10, most=64), signal.seconds("timeleft", 60.0)]


def tasks_per_resource(options: JsonObject, ntasks: int) -> tuple[int, int]:
    """Return (tasks, tasks per core), one of which is 0."""
    if options.get("per-resource") is None:
        return ntasks, 0
    per_resource = options.object("per-resource")
    count = per_resource.positive("count", 1)
    if per_resource.get("type") == "node":
        return count, 0
    if per_resource.get("type") == "core":
        return 0, count
    raise per_resource.fail("type", "'node' or 'core'")
