"""The jobs that carry Python: their jobspecs, and the files that they leave."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parsl_flux_bulk import jobspec
from parsl_flux_bulk.crew import WorkerJob
from parsl_flux_bulk.instances.base import JobRequest, JobResult
from parsl_flux_bulk.resources import Resources
from parsl_flux_bulk.submitter import refused

if TYPE_CHECKING:
    from parsl_flux_bulk.crew import TaskJob

STDERR_TAIL_BYTES = 4096
STDERR_TAIL_LINES = 20

_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What all jobs of an executor have in common.

    Attributes
    ----------
    label, python : str
    output : str
        Directory for the standard output and error of jobs.
    cwd : str
    environment : mapping
        Of every job.
    sys_path : tuple of str
        Added to a worker's module search path.
    tasks_per_job, tasks_per_worker : int or None
    worker_idle_time : float
        Seconds.
    """

    label: str
    python: str
    output: str
    cwd: str
    environment: Mapping[str, str]
    sys_path: tuple[str, ...] = ()
    tasks_per_job: int | None = None
    tasks_per_worker: int | None = None
    worker_idle_time: float = 3.0

    def setup(self) -> dict[str, Any]:
        """What every process of a job is told first."""
        return {"sys_path": list(self.sys_path), "tasks_per_worker": self.tasks_per_worker}


class JobBuilder:
    """Makes the requests for worker jobs and task jobs.

    Parameters
    ----------
    settings : WorkerSettings
    channel : mapping
        Environment variables that lead to the channel.
    """

    def __init__(self, settings: WorkerSettings, channel: Mapping[str, str]) -> None:
        self._settings = settings
        self._environment = {**settings.environment, **channel}

    def request(self, job: WorkerJob | TaskJob) -> JobRequest:
        """Make the request for a job.

        Raises
        ------
        JobspecError
            The task's environment rules cannot be applied, or a text cannot be sent.
        """
        if isinstance(job, WorkerJob):
            resources = Resources(
                num_tasks=job.slots, cores_per_task=job.shape.cores, gpus_per_task=job.shape.gpus
            )
            return self._request(job, resources, "pool", per_node=True)
        return self._request(job, job.task.resources, "task", per_node=False)

    def _request(
        self, job: WorkerJob | TaskJob, resources: Resources, mode: str, *, per_node: bool
    ) -> JobRequest:
        stdout, stderr = self._paths(job)
        environment = {
            **self._environment,
            "PARSL_FLUX_BULK_TOKEN": str(job.token),
            "PARSL_FLUX_BULK_MODE": mode,
            "PARSL_FLUX_BULK_CORES": str(resources.cores_per_task),
            "PARSL_FLUX_BULK_GPUS": str(resources.gpus_per_task),
        }
        text = jobspec.build(
            resources,
            [self._settings.python, _WORKER],
            environment=environment,
            cwd=self._settings.cwd,
            name=self._settings.label,
            stdout=stdout,
            stderr=stderr,
            per_node=per_node,
        )
        return JobRequest(text, resources.urgency, trusted=True)

    def _paths(self, job: WorkerJob | TaskJob) -> tuple[str, str]:
        kind = "workers" if isinstance(job, WorkerJob) else "task"
        base = os.path.join(self._settings.output, f"{kind}-{job.token}")
        return f"{base}.out", f"{base}.err"

    def collect_output(self, job: WorkerJob | TaskJob, *, failed: bool) -> str:
        """Return the last lines of a failed job's standard error; remove files that are empty."""
        stdout, stderr = self._paths(job)
        tail = _tail(stderr) if failed else ""
        for path in (stdout, stderr):
            try:
                if os.path.getsize(path) == 0:
                    os.unlink(path)
            except OSError:
                pass  # the job never started, or its node's file system lags behind
        return tail

    @staticmethod
    def refusal(error: Exception) -> JobResult:
        """The result of a job whose request could not even be made."""
        return refused(str(error))


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - STDERR_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-STDERR_TAIL_LINES:])
