"""One job of the embedded instance: its processes, signals and end. Runs in the broker.

Each task leads a session of its own, so a process group too. What a task leaves in its group is
killed when the task ends; what left the group, when the job ends (:mod:`.local_processes`).
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
from typing import Any, TypeVar

from parsl_flux_bulk.instances.local.job_plan import JobPlan
from parsl_flux_bulk.instances.local.output import JobFiles, LabelledPipe, render, spool_paths, tail
from parsl_flux_bulk.instances.local.processes import job_tmpdir

T = TypeVar("T")

FALLBACK_DIRECTORY = "/tmp"
"""Where a job runs whose working directory cannot be entered; Flux's shell does the same."""

HOSTNAME = socket.gethostname()


class StartFailed(Exception):
    """A job could not be started; `exit_code` is as a shell has it: 127 not found, 126 not executable."""

    def __init__(self, note: str, exit_code: int = 1) -> None:
        super().__init__(note)
        self.exit_code = exit_code


class Job:
    """A job that waits or runs.

    Attributes
    ----------
    cores, gpus : list of int
        Those allocated, as indices into the broker's lists.
    size : int
        Number of tasks; known once it has cores.
    tasks : dict
        Running processes: pid -> rank.
    started : bool
        It got resources, and its start was at least tried.
    exception, note : str
        What ends the job, if it is not its tasks' own doing; the first one stays.
    """

    __slots__ = (
        "_decided",
        "_directory",
        "_errors",
        "_labels",
        "_largest",
        "_signalled",
        "cores",
        "exception",
        "gpus",
        "id",
        "note",
        "plan",
        "size",
        "started",
        "tasks",
    )  # fmt: skip

    def __init__(self, job_id: int, plan: JobPlan, directory: str) -> None:
        self.id = job_id
        self.plan = plan
        self.cores: list[int] = []
        self.gpus: list[int] = []
        self.size = plan.ntasks
        self.tasks: dict[int, int] = {}
        self.started = False
        self.exception = ""
        self.note = ""
        self._directory = directory
        self._largest = 0
        self._signalled = 0
        self._decided = False
        self._errors: dict[str, int] = {}
        self._labels: list[LabelledPipe] = []

    # -- start ---------------------------------------------------------------------------------------

    def start(
        self, cpus: Sequence[Sequence[int]], gpus: Sequence[str] | None, selector: selectors.BaseSelector
    ) -> None:
        """Start all tasks.

        Parameters
        ----------
        cpus : sequence
            For each core that the job got, its CPUs.
        gpus : sequence of str or None
            The job's GPUs as ``CUDA_VISIBLE_DEVICES`` names them; None leaves that variable alone.

        Raises
        ------
        StartFailed
            Tasks that run already are in `tasks`.
        """
        self.started = True
        self.size = self.plan.ntasks or self.plan.tasks_per_core * len(cpus)
        os.mkdir(job_tmpdir(self._directory, self.id), 0o700)
        usable = os.path.isdir(self.plan.cwd) and os.access(self.plan.cwd, os.X_OK)
        cwd = self.plan.cwd if usable else FALLBACK_DIRECTORY
        files = JobFiles(self.plan, spool_paths(self._directory, self.id), cwd)
        everywhere = os.sched_getaffinity(0)
        try:
            for rank in range(self.size):
                values = self._template_values(rank)
                stdio = self._open(files, values)
                if not usable and rank == 0:
                    os.write(
                        stdio[2],
                        f"cannot enter directory {self.plan.cwd}; going to {cwd}\n".encode(errors="replace"),
                    )
                if self.plan.affinity != "off":
                    # The task inherits it. Set in the child it would cost the fast path (vfork) of
                    # subprocess; set after the start it would come too late.
                    mine = share(cpus, rank, self.size) if self.plan.affinity == "per-task" else cpus
                    os.sched_setaffinity(0, {cpu for core in mine for cpu in core})
                self._spawn(rank, cwd, self._environment(rank, values, gpus), values, stdio)
        finally:
            os.sched_setaffinity(0, everywhere)
            self._errors, self._labels = files.errors, files.labels
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
                # A script without "#!": execvp(3) gives it to the shell, so do Flux and people.
                found = shutil.which(argv[0], path=environment.get("PATH")) or argv[0]
                process = popen(["/bin/sh", found, *argv[1:]])
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            note = f"task {rank} (host {HOSTNAME}): start failed: {argv[0]}: {reason}"
            raise StartFailed(note, 127 if missing else 126) from error
        except subprocess.SubprocessError as error:
            note = f"task {rank} (host {HOSTNAME}): cannot set its resource limits: {error}"
            raise StartFailed(note) from error
        process.returncode = 0  # the broker reaps it; Popen must not, nor warn that nobody did
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
        if gpus is not None and plan.gpu_affinity != "off":
            mine = share(gpus, rank, self.size) if plan.gpu_affinity == "per-task" else gpus
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine) or "-1"
        return environment

    def _template_values(self, rank: int) -> dict[str, str]:
        """What the tags of flux-submit(1) stand for. Ids are decimal here, whatever is asked for."""
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
            try:
                os.killpg(pid, signum)
            except (ProcessLookupError, PermissionError):
                pass

    def fail(self, exception: str, note: str, exit_code: int = 0) -> bool:
        """Note why the job ends; False if there is a reason already."""
        if self.exception:
            return False
        self.exception, self.note = exception, note
        if exit_code:
            self._largest, self._decided = exit_code, True  # whatever the tasks killed for it report
        return True

    def task_ended(self, pid: int, status: int) -> int:
        """Take a task's wait status; return it as a shell has it, 128 + N for signal N."""
        del self.tasks[pid]
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 128 + signalled if signalled else os.WEXITSTATUS(status)
        if code > self._largest and not self._decided:
            self._largest, self._signalled = code, signalled
        return code

    def finish(self) -> dict[str, Any] | None:
        """Clean up after the last task; return the fields of the JobResult, None for exit status 0."""
        for pipe in self._labels:
            pipe.close()
        self._labels = []
        if self.started:
            shutil.rmtree(job_tmpdir(self._directory, self.id), ignore_errors=True)
        if not self.exception and not self._largest:
            return None
        ran = self.started
        return {
            "status": {"cancel": "canceled", "timeout": "timeout"}.get(self.exception, "failed"),
            "exit_code": self._largest if ran and not self._signalled else None,
            "signal": self._signalled or None,
            "exception": self.exception,
            "note": self.note,
            "started": ran,
            "stderr": "".join(tail(path, start) for path, start in self._errors.items()).rstrip("\n"),
        }


def share(items: Sequence[T], rank: int, size: int) -> Sequence[T]:
    """Return what task `rank` of `size` gets: a run of them, or one that it shares."""
    if size >= len(items):
        return [items[rank % len(items)]] if items else []
    return items[rank * len(items) // size : (rank + 1) * len(items) // size]


def limits_setter(limits: Mapping[str, int]) -> Callable[[], None] | None:
    """Return what sets these soft limits in a child; None where they are in force already.

    A limit above the hard one is cut to it, an unknown one passed over.
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
