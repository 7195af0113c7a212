"""One job of the embedded instance: its processes, signals and end. Runs in the server.

::

    WAITING ──> RUNNING ──────────────> ENDED     its tasks ended by themselves
       │           └──> STOPPING ─────────^       canceled, out of time, or failed to start
       └──────────────────^

Each task leads a session of its own, so a process group too. What a task leaves in its group is
killed when the task ends; what left the group, when the job ends (:mod:`.processes`).
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Sequence
from typing import Any

from parsl_flux_bulk.instances.full_disk import OUTPUT_CUT, cut_off
from parsl_flux_bulk.instances.local.job_plan import Environment, JobPlan
from parsl_flux_bulk.instances.local.kept_output import Result, Spool, SpoolFiles
from parsl_flux_bulk.instances.local.pmi import PmiServer
from parsl_flux_bulk.instances.local.processes import kill_group
from parsl_flux_bulk.instances.local.scratch import ScratchDirectories
from parsl_flux_bulk.instances.local.spawn import Limits, PrepareFailed, spawn
from parsl_flux_bulk.instances.local.stdio_files import JobFiles, LabeledPipe
from parsl_flux_bulk.instances.local.task_cpus import cpus_of_task, gpu_variables
from parsl_flux_bulk.instances.local.task_values import HOSTNAME, TaskValues
from parsl_flux_bulk.protocol import variables
from parsl_flux_bulk.protocol.states import State, Stateful
from parsl_flux_bulk.protocol.stderr_tail import read_tail

_TOKEN, _UNPINNED = variables.TOKEN.encode(), variables.UNPINNED.encode()


class JobState(State):
    """What a job does now."""

    WAITING = "waiting", "running", "stopping"
    RUNNING = "running", "stopping", "ended"
    STOPPING = "stopping", "ended"
    ENDED = ("ended",)


class StartFailed(Exception):
    """A job could not be started; `exit_code` is as a shell has it: 127 not found, 126 not executable."""

    def __init__(self, note: str, exit_code: int = 1) -> None:
        super().__init__(note)
        self.exit_code = exit_code


class Supplies:
    """What the server has for all jobs.

    Attributes
    ----------
    cpus : set of int
        Those of the server, and of jobs that are not pinned.
    """

    def __init__(self, directory: str) -> None:
        self.scratch = ScratchDirectories(directory)
        self.spool = Spool(directory)
        self.limits = Limits()
        self.cpus = os.sched_getaffinity(0)


class LocalJob(Stateful):
    """A job of the embedded instance.

    Attributes
    ----------
    state : JobState
    cores, gpus : list of int
        Those allocated, as indices into the server's lists.
    size : int
        Number of tasks; known once the job has cores.
    tasks : dict
        Running processes: pid -> rank.
    exception, note : str
        Why the job is STOPPING; "" if its tasks ended by themselves.
    """

    __slots__ = (
        "_ended_at", "_environment", "_errors", "_exit_code", "_failure_code", "_labels", "_pmi", "_signal",
        "_spool", "_started_at", "_supplies", "_written", "cores", "exception", "gpus", "id", "note", "plan",
        "size", "state", "tasks",
    )  # fmt: skip

    def __init__(self, job_id: int, plan: JobPlan, environment: Environment, supplies: Supplies) -> None:
        self.id = job_id
        self.plan = plan
        self.state = JobState.WAITING
        self.cores: list[int] = []
        self.gpus: list[int] = []
        self.size = plan.ntasks
        self.tasks: dict[int, int] = {}
        self.exception = ""
        self.note = ""
        self._environment = environment
        self._supplies = supplies
        self._spool: SpoolFiles | None = None
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._pmi: PmiServer | None = None
        self._exit_code = 0
        self._failure_code = 0
        self._signal = 0
        self._errors: dict[str, int] = {}
        self._labels: list[LabeledPipe] = []
        self._written: list[str] = []

    def __repr__(self) -> str:
        return f"<LocalJob {self.id} {self.state}>"

    # -- start ---------------------------------------------------------------------------------------

    def start(
        self,
        cpus: Sequence[Sequence[int]],
        gpus: Sequence[str] | None,
        selector: selectors.BaseSelector,
        abort: Callable[[int, int], None],
    ) -> None:
        """Start all tasks.

        Parameters
        ----------
        cpus : sequence
            For each core that the job got, its CPUs; none for a core to which jobs must not be pinned.
        gpus : sequence of str or None
            The job's GPUs as ``CUDA_VISIBLE_DEVICES`` names them; None leaves that variable alone.
        abort : callable
            See :class:`PmiServer`.

        Raises
        ------
        StartFailed
            Tasks that run already are in `tasks`.
        """
        self.move_to(JobState.RUNNING)
        self._started_at = time.time()
        plan, supplies = self.plan, self._supplies
        self.size = plan.ntasks or plan.tasks_per_core * len(cpus)
        tmpdir = supplies.scratch.make(self.id)
        values = TaskValues(self.id, plan.name, self.size, self.cores, self.gpus, tmpdir)
        cwd = values.render(plan.cwd)
        _enter(cwd)
        if plan.stdout is None or plan.stderr is None:
            self._spool = supplies.spool.open(self.id)
        files = JobFiles(plan, self._spool, cwd)
        if plan.pmi and self.size > 1:
            self._pmi = PmiServer(f"job{self.id}", self.size, abort)
        try:
            for rank in range(self.size):
                task = values.of_task(rank)
                stdio = self._open(files, task)
                # The task inherits the affinity of this thread. Set in the child it would cost the fast path
                # (vfork); set after the start it would come too late.
                pinned = cpus_of_task(plan.affinity, cpus, rank, self.size)
                os.sched_setaffinity(0, supplies.cpus if pinned is None else pinned)
                environment = self._variables(task, gpus)
                if pinned is None and _TOKEN in environment:
                    environment[_UNPINNED] = b"1"
                descriptors: tuple[int, ...] = stdio
                if self._pmi is not None:
                    descriptor, more = self._pmi.open(rank)
                    environment |= more
                    descriptors = (*stdio, descriptor)
                self._spawn(task, cwd, environment, descriptors)
        finally:
            os.chdir("/")  # the server keeps no file system busy
            self._errors, self._labels, self._written = files.errors, files.labels, files.written
            files.close()
            for pipe in self._labels:
                pipe.watch(selector)
            if self._pmi is not None:
                self._pmi.watch(selector)

    def _open(self, files: JobFiles, values: TaskValues) -> tuple[int, int, int]:
        try:
            return files.for_task(values)
        except OSError as error:
            raise StartFailed(f"cannot open '{error.filename}': {error.strerror}") from error
        except ValueError as error:
            raise StartFailed(f"cannot open a file of the job: {error}") from error

    def _spawn(
        self, task: TaskValues, cwd: str, environment: dict[bytes, bytes], descriptors: tuple[int, ...]
    ) -> None:
        argv = [task.render(word) for word in self.plan.command]
        try:
            pid = spawn(argv, environment, descriptors, self._supplies.limits.setter(self.plan.rlimits))
        except (OSError, ValueError) as error:
            _enter(cwd)  # which may have vanished
            reason = error.strerror if isinstance(error, OSError) else str(error)
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            note = f"task {task.rank} (host {HOSTNAME}): start failed: {argv[0]}: {reason}"
            raise StartFailed(note, 127 if missing else 126) from error
        except PrepareFailed as error:
            note = f"task {task.rank} (host {HOSTNAME}): cannot set its resource limits: {error}"
            raise StartFailed(note) from error
        self.tasks[pid] = task.rank

    def _variables(self, task: TaskValues, gpus: Sequence[str] | None) -> dict[bytes, bytes]:
        shared, own = self._environment
        rank = b"%d" % task.rank
        environment = {
            **shared,
            **own,
            b"FLUX_JOB_ID": b"%d" % self.id,
            b"FLUX_JOB_NNODES": b"1",
            b"FLUX_JOB_SIZE": b"%d" % self.size,
            b"FLUX_JOB_TMPDIR": os.fsencode(task.tmpdir),
            b"FLUX_TASK_RANK": rank,
            b"FLUX_TASK_LOCAL_ID": rank,
        }
        plan = self.plan
        more = {name: task.render(text) for name, text in plan.env_expand.items()}
        if gpus is not None:
            more |= gpu_variables(plan.gpu_affinity, gpus, task.rank, self.size)
        for name, value in more.items():
            environment[os.fsencode(name)] = os.fsencode(value)
        return environment

    # -- signals and the end -------------------------------------------------------------------------

    def kill(self, signum: int) -> None:
        """Send a signal to the process groups of all running tasks."""
        for pid in self.tasks:
            kill_group(pid, signum)

    def fail(self, exception: str, note: str, exit_code: int = 0) -> bool:
        """Enter STOPPING with a reason; False if the job is STOPPING already.

        An `exit_code` other than 0 is the job's, whatever the tasks that are killed for it report.
        """
        if self.state is JobState.STOPPING:
            return False
        self.move_to(JobState.STOPPING)
        self.exception, self.note = exception, note
        self._failure_code = exit_code
        return True

    def task_ended(self, pid: int, status: int) -> int:
        """Record a task's wait status; return it as a shell has it, 128 + N for signal N."""
        del self.tasks[pid]
        signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 128 + signum if signum else os.WEXITSTATUS(status)
        self._ended_at = time.time()
        if code > self._exit_code:
            self._exit_code, self._signal = code, signum
        return code

    def finish(self, *, clean: bool) -> Result:
        """Clean up after the last task; return how and when the job ended.

        Parameters
        ----------
        clean : bool
            Whether no other process of the job is left.
        """
        self.move_to(JobState.ENDED)
        lacking = ""
        for pipe in self._labels:
            pipe.close()
            lacking = pipe.error or lacking
        self._labels = []
        if self._pmi is not None:
            self._pmi.close()
        started, spool = self._started_at, self._spool
        sizes = () if spool is None else spool.sizes()
        ended = self._ended_at or (None if started is None else time.time())
        result = self._result(lacking, sizes), started, ended
        if spool is not None:
            self._supplies.spool.keep(spool, sizes, reuse=clean)
        if started is not None:
            self._supplies.scratch.remove(self.id)
        return result

    def _result(self, lacking: str, spooled: Sequence[int]) -> dict[str, Any] | None:
        if not self.exception and not self._exit_code:
            lacking = lacking or cut_off(self._written)
            if self._spool is not None:
                lacking = lacking or self._spool.cut_off(spooled)
            if not lacking:
                return None
            self.exception, self.note = OUTPUT_CUT, lacking
        started = self._started_at is not None
        exit_code, signum = (self._failure_code, 0) if self._failure_code else (self._exit_code, self._signal)
        return {
            "status": {"cancel": "canceled", "timeout": "timeout"}.get(self.exception, "failed"),
            "exit_code": exit_code if started and exit_code and not signum else None,
            "signal": signum or None,
            "exception": self.exception,
            "note": self.note,
            "started": started,
            "stderr": "\n".join(filter(None, (read_tail(*file) for file in self._errors.items()))),
        }


def _enter(path: str) -> None:
    """Change the directory; raise StartFailed if a process cannot run there."""
    try:
        os.chdir(path)
    except OSError as error:
        raise StartFailed(f"cannot enter the working directory '{path}': {error.strerror}") from error
