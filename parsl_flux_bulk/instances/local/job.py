"""One job of the embedded instance: its processes, signals and end. Runs in the server.

::

    WAITING ──> RUNNING ──────────────> ENDED     its tasks ended by themselves
       │           └──> STOPPING ─────────^       canceled, out of time, or failed to start
       └──────────────────^

Each task leads a session of its own, so a process group too. What a task leaves in its group is
killed when the task ends; what left the group, when the job ends (:mod:`.processes`).
"""

from __future__ import annotations

import errno
import os
import resource
import selectors
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parsl_flux_bulk.instances.full_disk import OUTPUT_CUT, cut_off
from parsl_flux_bulk.instances.local.job_plan import JobPlan
from parsl_flux_bulk.instances.local.processes import job_tmpdir, kill_group
from parsl_flux_bulk.instances.local.scratch import ScratchDirectories
from parsl_flux_bulk.instances.local.stdio_files import JobFiles, LabeledPipe, render, spool_paths
from parsl_flux_bulk.instances.local.task_pinning import cpus_of_task, gpu_variables
from parsl_flux_bulk.protocol import variables
from parsl_flux_bulk.protocol.states import State, Stateful
from parsl_flux_bulk.protocol.stderr_tail import read_tail

HOSTNAME = socket.gethostname()


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


class LocalJob(Stateful):
    """A job of the embedded instance.

    Attributes
    ----------
    state : JobState
    cores, gpus : list of int
        Those allocated, as indices into the server's lists; empty if the job never started.
    size : int
        Number of tasks; known once the job has cores.
    tasks : dict
        Running processes: pid -> rank.
    exception, note : str
        Why the job is STOPPING; "" if its tasks ended by themselves.
    """

    __slots__ = (
        "_directory", "_errors", "_exit_code", "_failure_code", "_labels", "_scratch", "_signal", "_written",
        "cores", "exception", "gpus", "id", "note", "plan", "size", "state", "tasks",
    )  # fmt: skip

    def __init__(self, job_id: int, plan: JobPlan, scratch: ScratchDirectories) -> None:
        self.id = job_id
        self.plan = plan
        self.state = JobState.WAITING
        self.cores: list[int] = []
        self.gpus: list[int] = []
        self.size = plan.ntasks
        self.tasks: dict[int, int] = {}
        self.exception = ""
        self.note = ""
        self._directory = scratch.directory
        self._scratch = scratch
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
        self, cpus: Sequence[Sequence[int]], gpus: Sequence[str] | None, selector: selectors.BaseSelector
    ) -> None:
        """Start all tasks.

        Parameters
        ----------
        cpus : sequence
            For each core that the job got, its CPUs; none for a core to which jobs must not be pinned.
        gpus : sequence of str or None
            The job's GPUs as ``CUDA_VISIBLE_DEVICES`` names them; None leaves that variable alone.

        Raises
        ------
        StartFailed
            Tasks that run already are in `tasks`.
        """
        self.move_to(JobState.RUNNING)
        self.size = self.plan.ntasks or self.plan.tasks_per_core * len(cpus)
        self._scratch.make(self.id)
        cwd = render(self.plan.cwd, self._template_values(0))
        _check_directory(cwd)
        files = JobFiles(self.plan, spool_paths(self._directory, self.id), cwd)
        everywhere = os.sched_getaffinity(0)
        try:
            for rank in range(self.size):
                values = self._template_values(rank)
                stdio = self._open(files, values)
                # The task inherits the affinity. Set in the child it would cost the fast path (vfork)
                # of subprocess; set after the start it would come too late.
                pinned = cpus_of_task(self.plan.affinity, cpus, rank, self.size)
                os.sched_setaffinity(0, everywhere if pinned is None else pinned)
                environment = self._environment(rank, values, gpus)
                if pinned is None and variables.TOKEN in environment:
                    environment[variables.UNPINNED] = "1"
                self._spawn(rank, cwd, environment, values, stdio)
        finally:
            os.sched_setaffinity(0, everywhere)
            self._errors, self._labels, self._written = files.errors, files.labels, files.written
            files.close()
            for pipe in self._labels:
                pipe.watch(selector)

    def _open(self, files: JobFiles, values: Mapping[str, str]) -> tuple[int, int, int]:
        try:
            return files.for_task(values)
        except OSError as error:
            raise StartFailed(f"cannot open '{error.filename}': {error.strerror}") from error
        except ValueError as error:
            raise StartFailed(f"cannot open a file of the job: {error}") from error

    def _spawn(
        self,
        rank: int,
        cwd: str,
        environment: dict[str, str],
        values: Mapping[str, str],
        stdio: tuple[int, int, int],
    ) -> None:
        argv = [render(word, values) for word in self.plan.command]
        prepare = limits_setter(self.plan.rlimits)

        def popen(words: list[str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                words, cwd=cwd, env=environment, start_new_session=True, preexec_fn=prepare,
                stdin=stdio[0], stdout=stdio[1], stderr=stdio[2],
            )  # fmt: skip

        try:
            try:
                process = popen(argv)
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
                # A script without "#!": execvp(3) gives it to the shell, so does Flux.
                found = shutil.which(argv[0], path=environment.get("PATH")) or argv[0]
                process = popen(["/bin/sh", found, *argv[1:]])
        except (OSError, ValueError) as error:
            _check_directory(cwd)  # Popen names the program for a directory that has vanished
            reason = error.strerror if isinstance(error, OSError) else str(error)
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            note = f"task {rank} (host {HOSTNAME}): start failed: {argv[0]}: {reason}"
            raise StartFailed(note, 127 if missing else 126) from error
        except subprocess.SubprocessError as error:
            note = f"task {rank} (host {HOSTNAME}): cannot set its resource limits: {error}"
            raise StartFailed(note) from error
        process.returncode = 0  # the server reaps it; Popen must not, nor warn that nobody did
        self.tasks[process.pid] = rank

    def _environment(
        self, rank: int, values: Mapping[str, str], gpus: Sequence[str] | None
    ) -> dict[str, str]:
        plan = self.plan
        environment = dict(plan.environment)
        environment.update({name: render(text, values) for name, text in plan.env_expand.items()})
        environment.update(
            FLUX_JOB_ID=str(self.id),
            FLUX_JOB_NNODES="1",
            FLUX_JOB_SIZE=str(self.size),
            FLUX_JOB_TMPDIR=values["tmpdir"],
            FLUX_TASK_RANK=str(rank),
            FLUX_TASK_LOCAL_ID=str(rank),
        )
        if gpus is not None:
            environment.update(gpu_variables(plan.gpu_affinity, gpus, rank, self.size))
        return environment

    def _template_values(self, rank: int) -> dict[str, str]:
        """Return the values of the tags of flux-submit(1). All forms of the id are decimal here but hex."""
        job_id, size, task = str(self.id), str(self.size), str(rank)
        return {
            "id": job_id, "jobid": job_id, "id.dec": job_id, "id.f58": job_id, "id.hex": hex(self.id),
            "name": self.plan.name, "nnodes": "1", "size": size, "ntasks": size,
            "taskid": task, "task.id": task, "task.rank": task, "task.index": task, "task.localid": task,
            "node.id": "0", "node.name": HOSTNAME, "node.broker_rank": "0",
            "node.cores": ",".join(map(str, self.cores)), "node.ncores": str(len(self.cores)),
            "node.gpus": ",".join(map(str, self.gpus)), "tmpdir": job_tmpdir(self._directory, self.id),
        }  # fmt: skip

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
        if code > self._exit_code:
            self._exit_code, self._signal = code, signum
        return code

    def finish(self) -> dict[str, Any] | None:
        """Clean up after the last task; return the fields of the JobResult, None for exit status 0."""
        self.move_to(JobState.ENDED)
        lacking = ""
        for pipe in self._labels:
            pipe.close()
            lacking = pipe.error or lacking
        self._labels = []
        started = bool(self.cores)
        if started:
            self._scratch.remove(self.id)
        if not self.exception and not self._exit_code:
            if not (lacking := lacking or cut_off(self._written)):
                return None
            self.exception, self.note = OUTPUT_CUT, lacking
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


def _check_directory(path: str) -> None:
    """Raise StartFailed if a process cannot run in the directory."""
    try:
        os.stat(os.path.join(path, "."))
    except OSError as error:
        raise StartFailed(f"cannot enter the working directory '{path}': {error.strerror}") from error


def limits_setter(limits: Mapping[str, int]) -> Callable[[], None] | None:
    """Return what sets these soft limits in a child; None where they are in force already.

    A limit above the hard one is lowered to it; one of an unknown name is ignored.
    """
    changes = []
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            continue
        soft, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY and (value == resource.RLIM_INFINITY or value > hard):
            value = hard
        if value != soft:
            changes.append((number, (value, hard)))
    if not changes:
        return None

    def set_limits() -> None:
        for number, pair in changes:
            resource.setrlimit(number, pair)

    return set_limits
