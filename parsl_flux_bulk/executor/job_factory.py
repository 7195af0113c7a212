"""The jobs of an executor: their jobspecs, and the files that they leave."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_flux_bulk import jobspec
from parsl_flux_bulk.instances.base import JobRequest
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.protocol import instance_uri, variables
from parsl_flux_bulk.protocol.stderr_tail import read_tail
from parsl_flux_bulk.protocol.worker_job_name import WorkerJobName, new_mark
from parsl_flux_bulk.scheduler.model import WorkerJob
from parsl_flux_bulk.scheduler.task import CommandTask

if TYPE_CHECKING:
    from parsl_flux_bulk.scheduler.model import TaskJob

_WORKER = str(Path(__file__).resolve().parents[1] / "worker" / "main.py")

_NESTED = (
    "sh",
    "-c",
    # `flux start` replaces FLUX_URI, and the task's channel leads through the outer instance.
    f'export {variables.OUTER_URI}="$FLUX_URI"; '
    'command -v flux >/dev/null || { echo "nested=True needs Flux: no flux command on PATH" >&2; exit 127; }'
    '; exec flux start "$@"',
    "nested",
)
"""Runs a command as the initial program of a Flux instance in the job."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of all jobs of an executor.

    Attributes
    ----------
    label, python : str
    output : str
        Directory for the standard output and error of jobs.
    cwd : str
    environment : mapping
        Environment of every job.
    rlimits : mapping
        Soft limits of every job, as `jobspec.build` takes them.
    sys_path : tuple of str
        Entries to add to a worker's module search path.
    tasks_per_job, tasks_per_worker, max_workers, max_workers_per_node : int or None
    worker_idle_time : float
        Seconds; may be infinite.
    """

    label: str
    python: str
    output: str
    cwd: str
    environment: Mapping[str, str]
    rlimits: Mapping[str, int] = field(default_factory=dict)
    sys_path: tuple[str, ...] = ()
    tasks_per_job: int | None = None
    tasks_per_worker: int | None = None
    max_workers: int | None = None
    max_workers_per_node: int | None = None
    worker_idle_time: float = 3.0

    def setup(self) -> dict[str, Any]:
        """Return the SETUP that every process of a job receives first."""
        # Managers write their decisions to the job's stderr if this logger is at DEBUG.
        debug = logging.getLogger("parsl_flux_bulk.worker").isEnabledFor(logging.DEBUG)
        return {"sys_path": list(self.sys_path), "tasks_per_worker": self.tasks_per_worker, "debug": debug}


class JobFactory:
    """Make the requests for worker jobs and task jobs.

    Parameters
    ----------
    settings : WorkerSettings
    channel : mapping
        Environment variables with the address of the channel.

    Attributes
    ----------
    mark : str
        In the names of the executor's worker jobs, and of no others.
    """

    def __init__(self, settings: WorkerSettings, channel: Mapping[str, str]) -> None:
        self._settings = settings
        self._channel = dict(channel)
        self._in_flux = not channel.get(variables.CHANNEL, "").startswith("unix:")
        self._python = (settings.python, _WORKER)
        self.mark = new_mark()

    def request(self, job: WorkerJob | TaskJob) -> JobRequest:
        """Make the request for a job.

        Raises
        ------
        JobspecError
            The task's environment rules cannot be applied, or a string cannot be encoded.
        """
        if isinstance(job, WorkerJob):
            unit = job.unit
            units = unit.units(job.slots)
            resources = Resources(num_tasks=units, cores_per_task=unit.cores, gpus_per_task=unit.gpus)
            own = self._python_environment(job, resources, "manager")
            if unit.workers > 1:
                own[variables.SHARING] = str(unit.workers)
                if job.slots < unit.workers:
                    own[variables.SLOTS] = str(job.slots)
            own[variables.OUTPUT] = self._output_base(job)
            name = WorkerJobName(self.mark, unit.cores, unit.gpus).with_label(self._settings.label)
            return self._request(job, resources, self._python, own, name, per_node=True)
        task = job.task
        if isinstance(task, CommandTask):
            # The command does not use the channel; the cancel guard finds an executor's jobs by its address.
            own, command = self._channel, task.command.arguments
        else:
            own, command = self._python_environment(job, task.resources, "task"), self._python
        if task.resources.nested:
            command = (*_NESTED, *command)
        elif isinstance(task, CommandTask) and self._in_flux:
            command = (*instance_uri.HIDING_COMMAND, *command)
        return self._request(job, task.resources, command, own, task.name)

    def _python_environment(
        self, job: WorkerJob | TaskJob, resources: Resources, mode: str
    ) -> dict[str, str]:
        return {
            **self._channel,
            variables.TOKEN: str(job.token),
            variables.MODE: mode,
            variables.CORES: str(resources.cores_per_task),
            variables.GPUS: str(resources.gpus_per_task),
        }

    def _request(
        self,
        job: WorkerJob | TaskJob,
        resources: Resources,
        command: Sequence[str],
        own_environment: Mapping[str, str],
        name: str,
        *,
        per_node: bool = False,
    ) -> JobRequest:
        stdout, stderr = self.output_paths(job)
        # Append, since the files may begin with the header of a bash app, or belong to the user.
        options: dict[str, object] = {"output": {"mode": "append"}}
        if resources.nested:
            per_node = True  # one broker on each node; they find each other through PMI
        elif per_node or resources.num_tasks == 1:
            # Without this, an MPI program that a task starts by itself takes the rank's PMI for its own.
            options["pmi"] = "off"
        if per_node and not resources.nested:
            options["env-expand"] = {variables.NODE_CORES: "{{node.ncores}}"}
        elif resources.gpus_per_task and not resources.nested:
            options["gpu-affinity"] = "per-task"
        built = jobspec.build(
            resources,
            command,
            environment=self._settings.environment,
            cwd=self._settings.cwd,
            name=name,
            stdout=stdout,
            stderr=stderr,
            per_node=per_node,
            rlimits=self._settings.rlimits,
            shell_options=options,
            own_environment=own_environment,
        )
        return JobRequest(built, resources.urgency)

    def _output_base(self, job: WorkerJob | TaskJob) -> str:
        kind = "workers" if isinstance(job, WorkerJob) else "task"
        return os.path.join(self._settings.output, f"{kind}-{job.token}")

    def output_paths(self, job: WorkerJob | TaskJob) -> tuple[str, str]:
        """Return the paths of a job's standard output and error; they may be templates that Flux expands."""
        base = self._output_base(job)
        stdout, stderr = f"{base}.out", f"{base}.err"
        if isinstance(job, WorkerJob) or not isinstance(job.task, CommandTask):
            return stdout, stderr
        command = job.task.command
        return command.stdout or stdout, command.stderr or stderr

    def collect_output(self, job: WorkerJob | TaskJob, *, failed: bool) -> str:
        """Return the last lines of a failed job's standard error; remove empty output files."""
        stdout, stderr = self.output_paths(job)
        paths = [stdout, stderr]
        if isinstance(job, WorkerJob):
            # Managers on further nodes have files of their own.
            paths += glob.glob(glob.escape(self._output_base(job)) + "-*")
        errors = [path for path in paths if path.endswith(".err")] or [stderr]
        tail = "\n".join(filter(None, map(read_tail, errors))) if failed else ""
        for path in paths:
            try:
                # Files that the user named are kept.
                if path.startswith(self._settings.output) and os.path.getsize(path) == 0:
                    os.unlink(path)
            except OSError:
                pass  # the job never started, or the node's file system is behind
        return tail
