"""Standard input, output and error of the embedded instance's jobs. Runs in the server.

Output goes to the files that the jobspec names, or else into the instance's spool
(:mod:`.kept_output`). All tasks of a job share an open file in append mode, so that lines of different tasks
do not overwrite each other. Only labeled output (``--label-io``) passes through the server.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable

from parsl_flux_bulk.instances.local.job_plan import JobPlan, Stream
from parsl_flux_bulk.instances.local.kept_output import SpoolFiles
from parsl_flux_bulk.instances.local.task_values import TaskValues

NO_INPUT = 0
"""The server's own standard input, which is /dev/null; a task without an input gets it too."""

_PIPE_READ = 1 << 16
_PIPE_READS = 16
"""So many reads empty the largest pipe that an unprivileged process may have, 1 MiB; pipe(7)."""


class JobFiles:
    """The open files of one job while its tasks are being started.

    Attributes
    ----------
    errors : dict
        Files that standard error goes to: path -> size before the job began.
    labels : list of LabeledPipe
        Pipes that outlive the start.
    written : list of str
        Files that output goes to, but for those of the spool.
    """

    def __init__(self, plan: JobPlan, spool: SpoolFiles | None, cwd: str) -> None:
        self.errors: dict[str, int] = {}
        self.labels: list[LabeledPipe] = []
        self.written: list[str] = []
        self._spool = spool
        self._cwd = cwd
        self._plan = plan
        self._open: dict[tuple[str, int], int] = {}  # path, O_RDONLY or O_WRONLY -> descriptor
        self._pipes: list[int] = []  # write ends, closed here once the tasks have them
        if spool is not None and plan.stderr is None:
            self.errors[spool.paths[1]] = 0

    def for_task(self, values: TaskValues) -> tuple[int, int, int]:
        """Return the three descriptors of a task; paths are rendered with `values`.

        Raises
        ------
        OSError
            Its `filename` is the path that could not be opened.
        """
        plan = self._plan
        name = values.render(plan.stdin)
        stdin = self._descriptor(name, os.O_RDONLY) if name else NO_INPUT
        return stdin, self._sink(0, plan.stdout, values), self._sink(1, plan.stderr, values)

    def _sink(self, number: int, stream: Stream | None, values: TaskValues) -> int:
        if stream is None:
            assert self._spool is not None
            return self._spool.descriptors[number]
        path = os.path.join(self._cwd, values.render(stream.path))
        if (path, os.O_WRONLY) not in self._open:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        truncate = 0 if stream.append else os.O_TRUNC
        descriptor = self._descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | truncate)
        if number and path not in self.errors:
            self.errors[path] = os.fstat(descriptor).st_size if stream.append else 0
        if not stream.label:
            return descriptor
        reader, writer = os.pipe()
        self._pipes.append(writer)
        self.labels.append(LabeledPipe(reader, os.dup(descriptor), f"{values.rank}: ".encode()))
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
