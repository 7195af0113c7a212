"""The shell options (flux-shell-options(7)) that the embedded instance honours; the others it passes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parsl_flux_bulk.errors import JobspecError
from parsl_flux_bulk.instances.local.values import duration, kind, mapping, positive, text

DEFAULT_EXIT_TIMEOUT = 30.0
"""Seconds that the other tasks of a job have after the first one ended; flux-shell(1)."""


@dataclass(frozen=True)
class Stream:
    """A file that the standard output or error of a job's tasks goes to."""

    path: str
    append: bool = False
    label: bool = False


def output_streams(options: Mapping[str, Any]) -> tuple[list[Any] | None, list[Any] | None]:
    """Standard output and error, the latter with the former's settings where it has none; flux-shell(7)."""
    where = "attributes.system.shell.options.output"
    output = mapping(options.get("output", {}), where)
    stdout = mapping(output.get("stdout", {}), f"{where}.stdout")
    stderr = {**stdout, **mapping(output.get("stderr", {}), f"{where}.stderr")}
    append = output.get("mode") == "append"
    return _stream(stdout, append, f"{where}.stdout"), _stream(stderr, append, f"{where}.stderr")


def _stream(option: Mapping[str, Any], append: bool, where: str) -> list[Any] | None:
    place = option.get("type", "file" if "path" in option else "kvs")
    if place == "kvs":
        return None
    if place != "file":
        raise JobspecError(f"must be 'file' or 'kvs', not {place!r}", f"{where}.type")
    return [text(option.get("path"), f"{where}.path"), append, bool(option.get("label", False))]


def input_path(options: Mapping[str, Any]) -> str:
    """The file that standard input comes from, or ""."""
    where = "attributes.system.shell.options.input"
    stdin = mapping(mapping(options.get("input", {}), where).get("stdin", {}), f"{where}.stdin")
    if stdin.get("type", "service") != "file":
        return ""
    return text(stdin.get("path"), f"{where}.stdin.path")


def affinity(option: Any) -> str:
    """What becomes of ``cpu-affinity`` or ``gpu-affinity``: on, per-task or off."""
    last = option.split(",")[-1] if isinstance(option, str) else ""  # "verbose,per-task"
    return last if last in ("off", "per-task") else "on"


def rlimits(options: Mapping[str, Any]) -> dict[str, int]:
    """Soft limits by lower-case name; -1 is without limit."""
    where = "attributes.system.shell.options.rlimit"
    limits = mapping(options.get("rlimit", {}), where)
    for name, value in limits.items():
        if not isinstance(value, int):
            raise JobspecError(f"must be a whole number, not {kind(value)}", f"{where}.{name}")
    return dict(limits)


def exit_timeout(options: Mapping[str, Any]) -> float | None:
    """Seconds that the other tasks have after the first one ended; None without limit."""
    value = options.get("exit-timeout", DEFAULT_EXIT_TIMEOUT)
    if value == "none":
        return None
    return duration(value, "attributes.system.shell.options.exit-timeout")


def warning_signal(options: Mapping[str, Any]) -> list[float] | None:
    """Signal number, and how many seconds before the duration ends it is sent."""
    option = options.get("signal")
    if not option:
        return None
    where = "attributes.system.shell.options.signal"
    values = option if isinstance(option, dict) else {}
    number = positive(values.get("signum", 10), f"{where}.signum")
    if number > 64:
        raise JobspecError(f"must be the number of a signal, not {number}", f"{where}.signum")
    return [number, duration(values.get("timeleft", 60.0), f"{where}.timeleft")]
