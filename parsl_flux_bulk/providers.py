"""FluxProvider: blocks from a machine whose system scheduler is Flux.

Any Parsl executor can use the provider, which needs the ``flux`` command but not Flux's Python bindings.

A block is a ``flux batch`` job. Flux runs the script of the block once, as the initial program of a new Flux
instance that spans the nodes of the block.

* An executor with one manager on each node, such as HighThroughputExecutor, has its command started on every
  node by a launcher, :class:`FluxLauncher`.
* :class:`~parsl_flux_bulk.FluxBulkExecutor` uses the Flux instance of the block. Its command is a
  :class:`OncePerBlock`, which is not wrapped by a default launcher.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

import typeguard
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers.base import Launcher
from parsl.launchers.errors import BadLauncher
from parsl.providers.base import ExecutionProvider
from parsl.providers.errors import ScriptPathError, SubmitException
from parsl.utils import RepresentationMixin

from parsl_flux_bulk.jobspec.duration import LONGEST, check_seconds
from parsl_flux_bulk.jobspec.job_environment import base_environment

logger = logging.getLogger(__name__)

RESULTS = {
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
}
"""Parsl's states by the result of an inactive job (flux-jobs(1))."""


class OncePerBlock(str):
    """A command that runs once in a block, inside the Flux instance of the block, and not on every node."""

    __slots__ = ()


class FluxLauncher(Launcher):
    """Start a command on every node of a block whose batch system is Flux, with ``flux run``.

    Parameters
    ----------
    debug : bool
        Write the ``flux run`` line to the block's standard error.
    overrides : str
        Further options of flux-run(1), such as ``"-o mpi=none"``.
    """

    def __init__(self, debug: bool = True, overrides: str = "") -> None:
        super().__init__(debug=debug)
        self.overrides = overrides

    def __call__(self, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = "") -> str:
        # Without --exclusive, each task is bound to one core.
        line = (
            f"flux run --nodes={nodes_per_block} --ntasks={nodes_per_block * tasks_per_node} --exclusive "
            f"{self.overrides} /bin/bash -c {shlex.quote(command)}"
        )
        return f"set -x\n{line}" if self.debug else line


class FluxProvider(ExecutionProvider, RepresentationMixin):
    """Submit blocks with ``flux batch`` to the Flux instance that schedules the system.

    Parameters
    ----------
    queue : str or None
        Queue to submit to (``flux batch --queue``); None means Flux's default.
    bank : str or None
        Bank to charge (``flux batch --bank``); None means the user's default.
    nodes_per_block : int
        Number of nodes of a block.
    cores_per_node : int or None
        Cores to request on each node of a block. None means all.
    gpus_per_node : int or None
        GPUs to request on each node of a block. None means all with `exclusive`, else none.
    exclusive : bool
        Request whole nodes (``flux batch --exclusive``). False requires `cores_per_node`.
    walltime : str
        Time limit of a block, ``HH:MM:SS``.
    init_blocks, min_blocks, max_blocks : int
        Number of blocks at the start, at least, and at most.
    parallelism : float
        Slots to provide for each waiting task, from 0 to 1; see Parsl's scaling strategies.
    scheduler_options : str
        Further directives for the batch script, one a line, such as ``#flux: --setattr=thp=always``
        (flux-batch(1)). They override the directives of this class.
    worker_init : str
        Shell commands that the batch script runs once, before the command of the block.
    uri : str or None
        Flux instance to submit to (``local://…``, ``ssh://…``). None means the instance in ``FLUX_URI``, or
        the system instance if that variable is not set.
    launcher : Launcher or None
        Wraps every command. None means :class:`FluxLauncher` for a command that runs on each node, and no
        launcher for a command that runs once in a block.
    cmd_timeout : float
        Timeout of each ``flux`` command, in seconds.

    Raises
    ------
    ValueError
        For a bad argument; names the argument and says what would be right.

    Notes
    -----
    The script of a block and its standard output and error are files in the executor's script directory,
    which must be on a file system that the nodes share.
    """

    starts_flux = True
    """The script of a block runs inside a Flux instance of the block, so the executor need not start one."""

    @typeguard.typechecked
    def __init__(
        self,
        queue: str | None = None,
        bank: str | None = None,
        nodes_per_block: int = 1,
        cores_per_node: int | None = None,
        gpus_per_node: int | None = None,
        exclusive: bool = True,
        walltime: str = "00:10:00",
        init_blocks: int = 1,
        min_blocks: int = 0,
        max_blocks: int = 1,
        parallelism: float = 1,
        scheduler_options: str = "",
        worker_init: str = "",
        uri: str | None = None,
        launcher: Launcher | None = None,
        cmd_timeout: float = 30,
    ) -> None:
        if not exclusive and cores_per_node is None:
            raise ValueError("exclusive=False needs cores_per_node: how many cores of each node a block gets")
        for name, value in (
            ("nodes_per_block", nodes_per_block),
            ("cores_per_node", cores_per_node),
            ("gpus_per_node", gpus_per_node),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if launcher is not None and not isinstance(launcher, Launcher):
            raise BadLauncher(launcher)
        _check_walltime(walltime)
        check_seconds("cmd_timeout", cmd_timeout)
        _check_directives(scheduler_options)
        self.queue = queue
        self.bank = bank
        self.nodes_per_block = nodes_per_block
        self.cores_per_node = cores_per_node
        self.gpus_per_node = gpus_per_node
        self.mem_per_node: float | None = None
        self.exclusive = exclusive
        self.walltime = walltime
        self.init_blocks = init_blocks
        self.min_blocks = min_blocks
        self.max_blocks = max_blocks
        self.parallelism = parallelism
        self.scheduler_options = scheduler_options
        self.worker_init = worker_init
        self.uri = uri
        self.launcher = launcher
        self.cmd_timeout = cmd_timeout
        self.script_dir: str | None = None
        self.resources: dict[object, Any] = {}
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        return "flux"

    @property
    def status_polling_interval(self) -> int:
        """Seconds between two calls of :meth:`status`."""
        return 10

    # -- submit --------------------------------------------------------------------------------------

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.flux") -> object:
        """Submit a block.

        Parameters
        ----------
        command : str
            Runs on each node of the block, or once if it is a :class:`OncePerBlock`.
        tasks_per_node : int
            Number of times that the command runs on each node.
        job_name : str
            Name of the Flux job; the time is appended.

        Returns
        -------
        str
            The job id, as ``flux batch`` prints it, in ASCII.

        Raises
        ------
        SubmitException
            If Flux rejects the block; carries the output of ``flux batch``.
        ScriptPathError
            If the script cannot be written.
        """
        job_name = f"{job_name}.{time.time()}"
        base = os.path.abspath(os.path.join(self.script_dir or ".", re.sub(r"[^\w.+=-]", "_", job_name)))
        stdout_path, stderr_path = f"{base}.stdout", f"{base}.stderr"
        script = self._script(command, tasks_per_node, job_name, stdout_path, stderr_path)
        script_path = f"{base}.sh"
        try:
            os.makedirs(os.path.dirname(base), exist_ok=True)
            with open(script_path, "w", encoding="utf-8") as file:
                file.write(script)
        except OSError as error:
            raise ScriptPathError(script_path, error) from error  # type: ignore[no-untyped-call]
        try:
            done = self._flux("batch", script_path)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SubmitException(job_name, f"flux batch did not run: {error}") from error  # type: ignore[no-untyped-call]
        job_id = done.stdout.strip().replace("ƒ", "f")
        if done.returncode != 0 or not job_id:
            raise SubmitException(  # type: ignore[no-untyped-call]
                job_name,
                done.stderr.strip() or "flux batch gave no job id",
                stdout=done.stdout,
                stderr=done.stderr,
                retcode=done.returncode,
            )
        status = JobStatus(JobState.PENDING, stdout_path=stdout_path, stderr_path=stderr_path)
        with self._lock:
            self.resources[job_id] = {"job_id": job_id, "job_name": job_name, "status": status}
        logger.debug("submitted block %s as Flux job %s, script %s", job_name, job_id, script_path)
        return job_id

    def _script(
        self, command: str, tasks_per_node: int, job_name: str, stdout_path: str, stderr_path: str
    ) -> str:
        if self.launcher is not None:
            command = self.launcher(command, tasks_per_node, self.nodes_per_block, self.script_dir or "")
        elif not isinstance(command, OncePerBlock):
            command = FluxLauncher()(command, tasks_per_node, self.nodes_per_block, self.script_dir or "")
        options = [f"--job-name={job_name}", f"--output={stdout_path}", f"--error={stderr_path}"]
        options += [f"--nodes={self.nodes_per_block}", f"--time-limit={seconds_of(self.walltime)}s"]
        if self.exclusive:
            options.append("--exclusive")
        if self.cores_per_node is not None or self.gpus_per_node is not None:
            options += [f"--nslots={self.nodes_per_block}", f"--cores-per-slot={self.cores_per_node or 1}"]
        if self.gpus_per_node is not None:
            options.append(f"--gpus-per-slot={self.gpus_per_node}")
        if self.queue is not None:
            options.append(f"--queue={self.queue}")
        if self.bank is not None:
            options.append(f"--bank={self.bank}")
        lines = ["#!/bin/bash", *(f"#flux: {shlex.quote(option)}" for option in options)]
        lines += [self.scheduler_options, self.worker_init, f"export JOBNAME={shlex.quote(job_name)}"]
        if self.cores_per_node is not None:
            lines.append(f"export PARSL_CORES={self.cores_per_node}")
        return "\n".join([*lines, command, ""])

    # -- status and cancel ---------------------------------------------------------------------------

    def status(self, job_ids: Sequence[object]) -> list[JobStatus]:
        """Return the status of blocks, with one ``flux jobs`` for all blocks that have not ended.

        If Flux does not answer, the last known status is returned and a warning is logged.
        """
        with self._lock:
            alive = [str(job_id) for job_id in job_ids if not self.resources[job_id]["status"].terminal]
        jobs = self._jobs(alive)
        with self._lock:
            if jobs is not None:
                for job_id in alive:
                    entry = self.resources[job_id]
                    entry["status"] = _status_of(jobs.get(job_id), entry["status"])
            return [self.resources[job_id]["status"] for job_id in job_ids]

    def _jobs(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]] | None:
        """Return what Flux reports about each job that it knows; None if it does not answer."""
        if not job_ids:
            return {}
        try:
            done = self._flux("jobs", "--json", *job_ids)
            unknown = re.findall(r"JobID (\S+) unknown", done.stderr.replace("ƒ", "f"))
            if set(unknown) >= set(job_ids):  # only then is the exit status not 0, and there is no JSON
                return {}
            if done.returncode != 0:
                raise ValueError(done.stderr.strip())
            answer = json.loads(done.stdout)
            # For a single id, flux jobs prints the job without a list around it.
            jobs = answer.get("jobs", [answer] if "id" in answer else [])
            return {job["jobid"].replace("ƒ", "f"): job for job in jobs}
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            logger.warning("status unknown blocks=%s: %s", " ".join(job_ids), error)
            return None

    def cancel(self, job_ids: Sequence[object]) -> list[bool]:
        """Cancel blocks.

        Returns
        -------
        list of bool
            False for each block that Flux did not cancel and that has not ended by itself.
        """
        if not job_ids:
            return []
        try:
            done = self._flux("cancel", *map(str, job_ids))
            if done.returncode == 0:
                return [True for _ in job_ids]
            reason = done.stderr.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        # flux-cancel(1) names the jobs that it cannot cancel, and cancels the others.
        refused = [bool(re.search(rf"(?<!\w){re.escape(str(job_id))}(?!\w)", reason)) for job_id in job_ids]
        if not any(refused):
            refused = [True for _ in job_ids]
        done_with = [
            not no or status.terminal for no, status in zip(refused, self.status(job_ids), strict=True)
        ]
        if not all(done_with):
            logger.warning("cancel failed blocks=%s: %s", " ".join(map(str, job_ids)), reason)
        return done_with

    def _flux(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**base_environment(os.environ), "FLUX_F58_FORCE_ASCII": "1"}
        if self.uri is not None:
            environment["FLUX_URI"] = self.uri
        # A new session, so that Ctrl-C does not interrupt the command in the middle of a submission.
        return subprocess.run(
            ["flux", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.cmd_timeout,
            env=environment,
            start_new_session=True,
            check=False,
        )


def seconds_of(walltime: str | None) -> int | None:
    """Return the seconds of a walltime as Parsl's providers take them, ``[DD:]HH:MM:SS`` or ``MM``.

    Returns
    -------
    int or None
        None for None, and for a string of another form.
    """
    try:
        numbers = [int(part) for part in (walltime or "").replace("-", ":").split(":")]
    except ValueError:
        return None
    if len(numbers) == 1:
        return numbers[0] * 60
    return sum(n * weight for n, weight in zip(reversed(numbers), (1, 60, 3600, 86400), strict=False))


def _check_walltime(walltime: str) -> None:
    well_formed = re.fullmatch(r"\d+:[0-5]?\d:[0-5]?\d", walltime)
    if not well_formed or not 0 < (seconds_of(walltime) or 0) <= LONGEST:
        raise ValueError(
            f"walltime must be HH:MM:SS, such as '01:30:00', and more than zero, not {walltime!r}"
        )


def _check_directives(options: str) -> None:
    for line in options.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            raise ValueError(
                f"scheduler_options must be directives such as '#flux: --setattr=NAME=VALUE', one a line, "
                f"not {line.strip()!r}; put shell commands into worker_init"
            )


def _status_of(job: dict[str, Any] | None, before: JobStatus) -> JobStatus:
    """Translate an entry of ``flux jobs --json``, or None for a job that Flux does not know."""
    message, exit_code = None, None
    if job is None:
        # Flux purges only inactive jobs, after a time that the site configures.
        state, message = JobState.COMPLETED, "ended; Flux has purged the job"
    elif job["state"] == "INACTIVE":
        state = RESULTS.get(job.get("result", ""), JobState.UNKNOWN)
        exit_code = job.get("returncode") if isinstance(job.get("returncode"), int) else None
        message = _why(job)
    elif job["state"] in ("RUN", "CLEANUP"):
        state = JobState.RUNNING
    else:
        state = JobState.HELD if job.get("urgency") == 0 else JobState.PENDING
    return JobStatus(
        state,
        message=message,
        exit_code=exit_code,
        stdout_path=before.stdout_path,
        stderr_path=before.stderr_path,
    )


def _why(job: dict[str, Any]) -> str | None:
    """Return why a job did not complete; None if it completed."""
    exception = job.get("exception", {})
    if exception.get("occurred"):
        return f"{exception.get('type', 'exception')}: {exception.get('note', '')}".rstrip(": ")
    if job.get("success"):
        return None
    return f"exit status {job['returncode']}" if "returncode" in job else "failed"
