"""Run many jobs from a Python script without Parsl; each job has a future.

::

    from pathlib import Path
    from parsl_flux_bulk import BulkSubmitter

    with BulkSubmitter() as bulk:
        for path in sorted(Path("jobs").glob("*.json")):
            bulk.submit(path)                        # a jobspec: file, JSON text or dict
        bulk.submit_command(["hostname"], num_tasks=2)
        for future in bulk.as_completed():
            print(future.job_name, future.label, future.job_result)

The `bulksubmit` command uses this class.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError
from types import TracebackType
from typing import TYPE_CHECKING, Any

from parsl_flux_bulk.bulk.job_future import JobFuture
from parsl_flux_bulk.bulk.jobspec_files import parse_jobspec, read_jobspec, shorten
from parsl_flux_bulk.instances.base import (
    Connection,
    Instance,
    JobRequest,
    JobResult,
    RecordsTimes,
    StartsInSteps,
)
from parsl_flux_bulk.instances.factory import choose_instance
from parsl_flux_bulk.jobspec import Jobspec, build
from parsl_flux_bulk.jobspec.jobspec import DEFAULT_URGENCY
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.pipeline.exit_status_to_error import job_error
from parsl_flux_bulk.pipeline.job import Job
from parsl_flux_bulk.pipeline.pipeline import CLOSE_TIMEOUT, Pipeline

if TYPE_CHECKING:
    from parsl_flux_bulk.blocks.packed.packing import Packing

__all__ = ["BulkSubmitter", "JobFuture"]


class BulkSubmitter:
    """Submit jobs to one instance in batches.

    A context manager: the end of the ``with`` block waits for the jobs that are outstanding, and an exception
    cancels them.

    Parameters
    ----------
    instance : Instance or str or None
        Where jobs run; see :func:`~parsl_flux_bulk.instances.factory.choose_instance`.
    max_active_jobs : int or None
        Bound on the jobs inside the instance at any time; the others wait in this process, where waiting
        costs nothing. None means a bound that depends on the instance's size.
    packed : bool or parsl_flux_bulk.blocks.packed.packing.Packing
        Run small jobs inside one Flux job on each node; see `parsl_flux_bulk.blocks.packed.packed_jobs`. A
        `Packing` also says what is known of the jobs, so that no more cores are taken than they need.
        Without effect on an instance that is not Flux, where jobs cost as little in any case.
    keep_ended : bool
        Keep the future of an ended job until `as_completed` has yielded it. With False, only the caller keeps
        futures, so that memory stays flat however many jobs are submitted, and `as_completed` cannot be used.
    record_times : bool
        Ask a Flux instance when jobs start and end, for ``t_start`` and ``t_end`` of their results, at the
        cost of two messages a job. The embedded instance and packed jobs always tell.

    Raises
    ------
    ValueError
        For a number out of its range.
    """

    def __init__(
        self,
        instance: Instance | str | None = None,
        *,
        max_active_jobs: int | None = None,
        packed: bool | Packing = False,
        keep_ended: bool = True,
        record_times: bool = False,
    ) -> None:
        chosen = choose_instance(instance)
        if isinstance(chosen, RecordsTimes):
            chosen.record_times = record_times
        self._jobs = _Jobs(keep_ended)
        self._instance = _packed(chosen, packed)
        self._pipeline = Pipeline[Job](self._instance, max_active_jobs=max_active_jobs, name="bulk-submitter")
        self._started = False

    def launch(self) -> None:
        """Begin to start, if the instance can do so without being waited for; raises as `start`."""
        if isinstance(self._instance, StartsInSteps):
            self._instance.launch()

    def start(self) -> None:
        """Attach to the instance, or start it; `with` calls this method.

        Raises
        ------
        InstanceUnavailable
            If neither is possible; the message says what is missing and what to do.
        """
        self._pipeline.start()
        self._pipeline.close_with(self)
        self._started = True

    @property
    def description(self) -> str:
        """One line about the instance."""
        return self._pipeline.description

    def connect(self) -> Connection:
        """Open a connection of the calling thread, for :meth:`JobFuture.output_part`; to be closed."""
        return self._pipeline.connect()

    @property
    def outstanding(self) -> int:
        """Number of jobs that have not ended."""
        return len(self._jobs)

    def submit(
        self,
        jobspec: str | os.PathLike[str] | Mapping[str, Any] | Jobspec,
        *,
        urgency: int = DEFAULT_URGENCY,
        label: str = "",
    ) -> JobFuture:
        """Submit one jobspec; return without waiting.

        Parameters
        ----------
        jobspec : str, path, dict or Jobspec
            RFC 25 jobspec, version 1: JSON text, the :class:`pathlib.Path` of a file with such text, the
            object itself, or a :class:`Jobspec`, which was checked before.
        urgency : int
            0 to 31 (RFC 30).
        label : str
            Name of the job in messages. By default, the name of the file.

        Raises
        ------
        JobspecError
            If the jobspec is not valid; says where in it, and why.
        OSError
            If the file cannot be read.
        """
        _check_urgency(urgency)
        if isinstance(jobspec, Jobspec):
            parsed = jobspec
        elif isinstance(jobspec, os.PathLike):
            parsed = read_jobspec(jobspec)
            label = label or os.fspath(jobspec)
        else:
            parsed = parse_jobspec(jobspec)
        return self._submit(JobRequest(parsed, urgency), label or "jobspec")

    def submit_command(
        self,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        stdout: str | None = None,
        stderr: str | None = None,
        label: str = "",
        **resources: Any,
    ) -> JobFuture:
        """Submit a command as a job; return without waiting.

        The job starts in this process's working directory, with its environment, unless `resources`
        says otherwise.

        Parameters
        ----------
        command : sequence of str
            Program and arguments; no shell is involved.
        stdin, stdout, stderr : str or None
            Names of files, in which ``{{id}}`` stands for the job id. Without `stdout`, the instance keeps
            the output (:meth:`JobFuture.stdout`). Without `stderr`, standard error goes where standard output
            goes.
        label : str
            Name of the job in messages. By default, the command.
        resources
            Keys of a resource specification, such as ``num_tasks=4``, ``duration="5m"``,
            ``environment={"OMP_NUM_THREADS": "2"}`` or ``urgency=20``; see
            :mod:`parsl_flux_bulk.jobspec.resources`.

        Raises
        ------
        InvalidResourceSpecification
            Names the key and its value, and says what would be right.
        JobspecError
            If the command is not a list of strings.
        """
        request = Resources.from_specification(resources)
        jobspec = build(
            request,
            command,
            environment=os.environ,
            cwd=os.getcwd(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        return self._submit(JobRequest(jobspec, request.urgency), label or shorten(" ".join(command)))

    def as_completed(self, timeout: float | None = None) -> Iterator[JobFuture]:
        """Yield jobs as they end, until every job submitted so far has been yielded.

        Each job is yielded once, even if there are several iterators. Jobs that ended before the iteration
        began, and jobs that are submitted during the iteration, are included.

        Parameters
        ----------
        timeout : float or None
            Seconds that the whole iteration may take.

        Raises
        ------
        concurrent.futures.TimeoutError
            When that time has passed.
        RuntimeError
            If the submitter was created with ``keep_ended=False``.
        """
        self._pipeline.refuse_fork()
        deadline = None if timeout is None else time.monotonic() + timeout
        while (future := self._jobs.next_ended(deadline)) is not None:
            yield future

    def __iter__(self) -> Iterator[JobFuture]:
        return self.as_completed()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended; return False if `timeout` seconds have passed first."""
        self._pipeline.refuse_fork()
        return self._jobs.wait(timeout)

    def cancel(self, reason: str = "canceled by the user") -> int:
        """Request that all outstanding jobs be canceled; return their number."""
        return sum(future.cancel(reason) for future in self._jobs.futures())

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Cancel the outstanding jobs and close the instance; a second call does nothing.

        Parameters
        ----------
        timeout : float
            Seconds that canceled jobs get to end.
        """
        self._pipeline.close(timeout=timeout)

    def __enter__(self) -> BulkSubmitter:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.close()

    def _submit(self, request: JobRequest, label: str) -> JobFuture:
        if not self._started:
            raise RuntimeError(
                "the BulkSubmitter is not started: use it in a `with` statement, or call start()"
            )
        self._pipeline.refuse_fork()
        job = Job()
        future = JobFuture(self._pipeline, job, label)
        self._jobs.add(job, future)
        try:
            self._pipeline.submit(job, request, self._jobs)
        except BaseException:
            self._jobs.forget(job)
            raise
        return future


class _Jobs:
    """The jobs that are outstanding, and those that have ended and were not yielded yet."""

    def __init__(self, keep_ended: bool) -> None:
        self._keep_ended = keep_ended
        # A job has no reference to its future, so that both are released as soon as the user lets go of them.
        self._outstanding: dict[Job, JobFuture] = {}
        self._ended: deque[JobFuture] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._outstanding)

    def add(self, job: Job, future: JobFuture) -> None:
        with self._changed:
            self._outstanding[job] = future

    def forget(self, job: Job) -> None:
        with self._changed:
            del self._outstanding[job]
            self._changed.notify_all()

    def futures(self) -> list[JobFuture]:
        with self._changed:
            return list(self._outstanding.values())

    def next_ended(self, deadline: float | None) -> JobFuture | None:
        """Wait for a job that ended; None if every job has been returned."""
        if not self._keep_ended:
            raise RuntimeError("ended jobs are not kept: create the BulkSubmitter with keep_ended=True")
        with self._changed:
            while not self._ended:
                if not self._outstanding:
                    return None
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._changed.wait(left):
                    raise TimeoutError(f"{len(self._outstanding)} job(s) have not ended in time")
            return self._ended.popleft()

    def wait(self, timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._outstanding, timeout)

    # -- JobOwner, in the completion thread --------------------------------------------------------

    def job_submitted(self, job: Job) -> None:
        self._outstanding[job].set_running_or_notify_cancel()

    def job_ended(self, job: Job, result: JobResult) -> None:
        future = self._outstanding[job]
        if result.ok:
            future.set_result(result)
        else:
            name = " ".join(filter(None, (job.name, f"({future.label})")))
            future.set_exception(job_error(result, f"job {name}"))
        with self._changed:
            del self._outstanding[job]
            if self._keep_ended:
                self._ended.append(future)
            self._changed.notify_all()


def _packed(instance: Instance, packed: bool | Packing) -> Instance:
    """Return the instance with packed jobs, whose modules are not imported without need."""
    if packed is False:
        return instance
    from parsl_flux_bulk.blocks.packed.packed_jobs import pack

    return pack(instance) if packed is True else pack(instance, packed)


def _check_urgency(urgency: int) -> None:
    if not 0 <= urgency <= 31:
        raise ValueError(
            f"urgency must be from 0 (hold) to 31 (expedite), 16 being the default; not {urgency!r}"
        )
