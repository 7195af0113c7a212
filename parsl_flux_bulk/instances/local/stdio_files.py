"""Standard input, output and error of the embedded instance's jobs. Runs in the server.

Output goes to the files that the jobspec names, or else into the instance's spool, one pair of
files a job. All tasks of a job share an open file in append mode, so that lines of different tasks
do not overwrite each other. Only labeled output (``--label-io``) passes through the server.
"""

from __future__ import annotations

import os
import re
import selectors
from collections.abc import Callable, Mapping

from parsl_flux_bulk.instances.local.job_plan import JobPlan, Stream

_PIPE_READ = 1 << 16
_PIPE_READS = 16
"""So many reads empty the largest pipe that an unprivileged process may have, 1 MiB; pipe(7)."""
_TEMPLATE = re.compile(r"\{\{([a-z0-9._]+)\}\}")


def spool_paths(directory: str, job_id: int) -> tuple[str, str]:
    """Return the paths where the instance keeps the output and error of a job."""
    return f"{directory}/spool/{job_id}.out", f"{directory}/spool/{job_id}.err"


def render(text: str, values: Mapping[str, str]) -> str:
    """Replace the tags ``{{…}}`` in `text`; an unknown one stays."""
    if "{{" not in text:
        return text
    return _TEMPLATE.sub(lambda match: values.get(match[1], match[0]), text)


class JobFiles:
    """The open files of one job while its tasks are being started.

    Attributes
    ----------
    errors : dict
        Files that standard error goes to: path -> size before the job began.
    labels : list of LabeledPipe
        Pipes that outlive the start.
    written : list of str
        Files that output goes to.
    """

    def __init__(self, plan: JobPlan, spool: tuple[str, str], cwd: str) -> None:
        self.errors: dict[str, int] = {}
        self.labels: list[LabeledPipe] = []
        self.written: list[str] = []
        self._spool = spool
        self._cwd = cwd
        self._stdin = plan.stdin
        self._streams = tuple(
            Stream(path) if fields is None else Stream(*fields)
            for path, fields in zip(spool, (plan.stdout, plan.stderr), strict=True)
        )
        self._open: dict[tuple[str, int], int] = {}  # path, O_RDONLY or O_WRONLY -> descriptor
        self._pipes: list[int] = []  # write ends, closed here once the tasks have them

    def for_task(self, values: Mapping[str, str]) -> tuple[int, int, int]:
        """Return the three descriptors of a task; paths are rendered with `values`.

        Raises
        ------
        OSError
            Its `filename` is the path that could not be opened.
        """
        stdin = self._descriptor(render(self._stdin, values) or os.devnull, os.O_RDONLY)
        out, err = (self._sink(stream, values) for stream in self._streams)
        return stdin, out, err

    def _sink(self, stream: Stream, values: Mapping[str, str]) -> int:
        path = os.path.join(self._cwd, render(stream.path, values))
        if path not in self._spool and (path, os.O_WRONLY) not in self._open:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        truncate = 0 if stream.append else os.O_TRUNC
        descriptor = self._descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | truncate)
        if stream is self._streams[1] and path not in self.errors:
            self.errors[path] = os.fstat(descriptor).st_size if stream.append else 0
        if not stream.label:
            return descriptor
        reader, writer = os.pipe()
        self._pipes.append(writer)
        self.labels.append(LabeledPipe(reader, os.dup(descriptor), f"{values['taskid']}: ".encode()))
        return writer

    def _descriptor(self, path: str, flags: int) -> int:
        path = os.path.join(self._cwd, path)
        # Standard input and error may both be /dev/null, but not the same descriptor of it.
        key = path, flags & os.O_ACCMODE
        if key not in self._open:
            # Without O_NONBLOCK, a named pipe would make the server wait for its other end.
            descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            os.set_blocking(descriptor, True)
            self._open[key] = descriptor
            if key[1] == os.O_WRONLY:
                self.written.append(path)
        return self._open[key]

    def close(self) -> None:
        """Close the descriptors, which the tasks have inherited by now."""
        for descriptor in [*self._open.values(), *self._pipes]:
            os.close(descriptor)
        self._open.clear()
        self._pipes.clear()


class LabeledPipe:
    """Copies a task's output to its file, each line with the task's rank in front.

    Attributes
    ----------
    error : str
        Why a part of the output was not written; "" if all of it was.
    """

    def __init__(self, reader: int, sink: int, label: bytes) -> None:
        os.set_blocking(reader, False)
        self._reader, self._sink, self._label = reader, sink, label
        self._rest = b""
        self.error = ""
        self._selector: selectors.BaseSelector | None = None

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Register with the server's selector."""
        self._selector = selector
        ready: Callable[[], object] = self._ready
        selector.register(self._reader, selectors.EVENT_READ, ready)

    def _ready(self) -> None:
        if not self._copy() and self._selector is not None:
            self._selector.unregister(self._reader)
            self._selector = None

    def _copy(self) -> bool:
        """Copy what one read returns; False at the end, or if the pipe is empty."""
        try:
            data = os.read(self._reader, _PIPE_READ)
        except BlockingIOError:
            return False
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if lines:
            self._write(b"".join(self._label + line + b"\n" for line in lines))
        return bool(data)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._sink, data) :]
        except OSError as error:  # a full disk must not end the server
            self.error = f"output could not be written: {error.strerror}"

    def close(self) -> None:
        """Copy the rest, and close."""
        # No more than a pipe holds: a process may still write, without end.
        for _ in range(_PIPE_READS):
            if not self._copy():
                break
        if self._rest:
            self._write(self._label + self._rest)
        if self._selector is not None:
            self._selector.unregister(self._reader)
        os.close(self._reader)
        os.close(self._sink)
