"""Complete a jobspec where Flux's shell would silently do something else than the user expects.

* A command finds its standard input empty if the jobspec names none; by default it would never end.
* A job whose working directory cannot be entered fails; by default it would run in ``/tmp``.
* Output files are found in the working directory, and their directories are made.
* Output that goes to the instance is bounded, since it passes through the broker.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parsl_flux_bulk.instances.base import JobId
from parsl_flux_bulk.jobspec.jobspec import Jobspec

OUTPUT_LIMIT = "10M"
"""Output of a job that the instance keeps at most, for each stream; as the shell option ``output.limit``."""

_UP = "../" * 100
_FAILED_INPUT = re.compile(rf"error opening input file '(.*?)/{re.escape(_UP)}(.*?)': ([^\n]*)")


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The files of a job's standard output and error.

    Attributes
    ----------
    stdout, stderr : str
        Absolute paths, in which ``{{id}}`` and other tags may stand; "" where the instance keeps the output.
    """

    stdout: str = ""
    stderr: str = ""

    def rendered(self, job_id: JobId, name: str) -> OutputFiles:
        """Return the paths with the tags of the job id replaced."""
        return OutputFiles(_render(self.stdout, job_id, name), _render(self.stderr, job_id, name))

    def paths(self) -> list[str]:
        """Return the paths whose tags are all known."""
        return [path for path in {self.stdout, self.stderr} if path and "{{" not in path]


def complete(jobspec: Jobspec, spool: str = "") -> tuple[Jobspec, OutputFiles]:
    """Return a jobspec to submit in place of `jobspec`, and where the output goes.

    Parameters
    ----------
    spool : str
        Directory for output without a file; "" leaves such output to the instance.
    """
    system = dict(jobspec.system)
    cwd = system.get("cwd", "")
    if cwd and not cwd.startswith(("/", "{{")):
        cwd = system["cwd"] = os.path.abspath(cwd)
    shell = dict(system.get("shell") or {})
    options = shell["options"] = dict(shell.get("options") or {})
    system["shell"] = shell
    if "pty" not in options:
        options["input"] = _input(options.get("input"), cwd)
    options["output"], files = _output(options.get("output"), cwd, spool)
    _make_directories(cwd, files)
    return jobspec.with_system(**system), files


def explain(text: str) -> str:
    """Return a message of the shell in which a failed check of the working directory names the directory."""

    def words(found: re.Match[str]) -> str:
        directory, path, reason = found.groups()
        if path == "dev/null":
            return f"cannot enter the working directory '{directory}': {reason}"
        return f"cannot enter the working directory '{directory}', or open the input file '/{path}': {reason}"

    return _FAILED_INPUT.sub(words, text)


def spool_paths(spool: str, job_id: JobId) -> tuple[str, str]:
    """Return the paths of the output and error of a job in the spool."""
    return f"{spool}/{job_id}.out", f"{spool}/{job_id}.err"


def _input(given: Any, cwd: str) -> dict[str, Any]:
    """Return the option ``input``, with a path that leads through the working directory.

    The shell opens the file on each node before it starts a task, and fails if it cannot.
    """
    option = dict(given) if isinstance(given, Mapping) else {}
    stdin = dict(option.get("stdin") or {"type": "file", "path": os.devnull})
    path = stdin.get("path")
    if stdin.get("type") == "file" and isinstance(path, str) and cwd.startswith("/") and "{{" not in cwd:
        if path.startswith("/"):
            path = f"{cwd.rstrip('/')}/{_UP}{path.lstrip('/')}"
        stdin["path"] = os.path.join(cwd, path)
    option["stdin"] = stdin
    # Each job lasts at least so long: the shell writes down, as one batch, where its input comes from.
    option.setdefault("batch-timeout", 0.001)
    return option


def _output(given: Any, cwd: str, spool: str) -> tuple[dict[str, Any], OutputFiles]:
    """Return the option ``output``. Standard error goes to the file of standard output by default."""
    option = dict(given) if isinstance(given, Mapping) else {}
    out = _stream(option.get("stdout"), cwd)
    err = _stream(option.get("stderr"), cwd)
    if spool and "path" not in out:
        if "path" not in err:
            err.update(type="file", path=f"{spool}/{{{{id.dec}}}}.err")
        out.update(type="file", path=f"{spool}/{{{{id.dec}}}}.out")
    elif spool and err.get("type") == "kvs":
        err.update(type="file", path=f"{spool}/{{{{id.dec}}}}.err")
    option.update({name: stream for name, stream in (("stdout", out), ("stderr", err)) if stream})
    option.setdefault("limit", OUTPUT_LIMIT)
    stdout = out.get("path", "")
    return option, OutputFiles(stdout, "" if err.get("type") == "kvs" else err.get("path", stdout))


def _stream(given: Any, cwd: str) -> dict[str, Any]:
    """Return the option of one stream, with an absolute path; without a path if the instance keeps it."""
    stream = dict(given) if isinstance(given, Mapping) else {}
    path = stream.get("path")
    if stream.get("type") == "kvs" or not isinstance(path, str):
        stream.pop("path", None)
    elif cwd.startswith("/") and "{{" not in cwd and not path.startswith(("/", "{{")):
        stream["path"] = os.path.join(cwd, path)
    return stream


def _make_directories(cwd: str, files: OutputFiles) -> None:
    """Make the directories of output files, as far as they are known and can be seen from here.

    Nothing is made for a job whose working directory is not seen here: it must not come to be so.
    """
    if cwd and not os.path.isdir(cwd):
        return
    for path in {files.stdout, files.stderr}:
        directory = os.path.dirname(path)
        if directory.startswith("/") and "{{" not in directory:
            with contextlib.suppress(OSError):  # the shell reports what it cannot open
                os.makedirs(directory, exist_ok=True)


def _render(path: str, job_id: JobId, name: str) -> str:
    if "{{" in path:
        for tag, value in (("id", name), ("jobid", name), ("id.f58", name), ("id.dec", str(job_id))):
            path = path.replace(f"{{{{{tag}}}}}", value)
    return path
