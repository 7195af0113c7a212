"""Parsl's face: FluxBulkExecutor turns calls into tasks. No loops, and no Flux, are here."""

from __future__ import annotations

import functools
import logging
import os
import site
import sys
import sysconfig
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import typeguard
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobStatus
from parsl.monitoring.radios.base import RadioConfig
from parsl.monitoring.radios.filesystem import FilesystemRadio
from parsl.providers.base import ExecutionProvider
from parsl.utils import RepresentationMixin

from parsl_flux_bulk.blocks.manager import Blocks
from parsl_flux_bulk.errors import ExecutorClosed
from parsl_flux_bulk.executor.bash_apps import recognize, render, without_parsl
from parsl_flux_bulk.executor.calls import FunctionTable, serialize_call
from parsl_flux_bulk.executor.job_factory import WorkerSettings
from parsl_flux_bulk.executor.runtime import TaskFuture, TaskRuntime
from parsl_flux_bulk.executor.scaling import BlockScaling
from parsl_flux_bulk.instances.base import Instance
from parsl_flux_bulk.instances.factory import choose_instance
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.jobspec.job_environment import base_environment, soft_limits
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.pipeline.pipeline import Pipeline
from parsl_flux_bulk.scheduler.model import TaskJob, WorkerJob
from parsl_flux_bulk.scheduler.task import CallTask, Command, CommandTask, Function

if TYPE_CHECKING:
    from parsl_flux_bulk.executor.runtime import StatusReport

logger = logging.getLogger(__name__)

BASH_APPS = ("native", "python")

SHUTDOWN_GRACE = 2.0
"""Seconds that workers get at shutdown to end by themselves before their jobs are cancelled."""


class FluxBulkExecutor(BlockScaling, RepresentationMixin):
    """Run Parsl apps through Flux: floods of small tasks and large MPI or GPU ones alike.

    By default, invocations whose ``parsl_resource_specification`` names nothing but
    ``cores_per_task`` and ``gpus_per_task`` share warm Python workers, and every other one becomes
    a Flux job of its own. The valid keys are in ``docs/resources.md``.

    Parameters
    ----------
    label : str
        Name of this executor, unique in a Parsl configuration.
    instance : None, str or Instance
        Where jobs run: ``"local"`` for this machine, ``"flux"`` for a Flux instance of our own, a
        URI for a running one (``local://…``, ``ssh://…``), or None to choose: the instance in
        ``FLUX_URI``, else one of our own where there is a ``flux`` command, else this machine.
    tasks_per_job : int or None
        1 makes every invocation a job of its own; None lets small ones share warm workers.
    max_active_jobs : int or None
        Bound on the jobs inside the instance at any time; None chooses one by its size.
    working_dir : str or None
        Directory for the output of jobs and workers, on a file system that the nodes share; None
        means one named as the label below Parsl's run directory.
    environment : dict or None
        Variables to add to the environment of every job, which is this process's without what an
        enclosing batch system's launcher put there (see ``docs/mpi.md``).
    python : str or None
        Python interpreter of the workers; None means this one.
    storage_access : list of Staging or None
        Parsl's data staging providers.
    remote_monitoring_radio : RadioConfig or None
        How tasks report to Parsl's monitoring; None means over the shared file system.
    worker_idle_time : float
        Seconds after which a worker without work ends; at once when others wait for its cores.
    tasks_per_worker : int or None
        Replace a worker process after so many tasks, for user code that leaks memory.
    bash_apps : str
        ``"native"`` makes the command of a bash app that needs a job of its own that job's command,
        without Python, and runs small ones in workers that do not import Parsl for it; ``"python"``
        runs Parsl's own code for them. See ``docs/bash-apps.md``.
    provider : ExecutionProvider or None
        A Parsl provider that gets blocks, each of which becomes a Flux instance that tasks are spread
        over; see ``docs/blocks.md``. `instance` is then None, or ``"local"`` for blocks without Flux,
        each one machine.
    launch : str
        With a provider: what starts the Flux instance of a block.
    address : str or None
        With a provider: under which blocks can reach this host; None means all that it has.
    node_init : str
        With a provider: shell command that runs once on each node of a block before there are workers.
    block_error_handler : bool or callable
        With a provider: what to do when blocks fail; as Parsl's HighThroughputExecutor takes it.

    Raises
    ------
    ValueError
        From the constructor, for a number out of its range.
    InstanceUnavailable
        From `start`, if the instance can be neither reached nor started.
    """

    @typeguard.typechecked
    def __init__(
        self,
        label: str = "FluxBulkExecutor",
        # An Instance is a protocol, which typeguard would check member by member.
        instance: str | object | None = None,
        tasks_per_job: int | None = None,
        max_active_jobs: int | None = None,
        working_dir: str | None = None,
        environment: dict[str, str] | None = None,
        python: str | None = None,
        storage_access: list[Any] | None = None,
        remote_monitoring_radio: RadioConfig | None = None,
        worker_idle_time: int | float = 3.0,
        tasks_per_worker: int | None = None,
        bash_apps: str = "native",
        provider: ExecutionProvider | None = None,
        launch: str = "flux start",
        address: str | None = None,
        node_init: str = "",
        block_error_handler: bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None] = True,
    ) -> None:
        super().__init__(provider=provider, block_error_handler=block_error_handler)
        if provider is not None and instance not in (None, "local"):
            raise ValueError(f"with a provider, instance must be None or 'local', not {instance!r}")
        if tasks_per_job not in (None, 1):
            raise ValueError(f"tasks_per_job must be 1 or None, not {tasks_per_job}")
        for name, value in (("max_active_jobs", max_active_jobs), ("tasks_per_worker", tasks_per_worker)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None, not {value}")
        if bash_apps not in BASH_APPS:
            raise ValueError(f"bash_apps must be {' or '.join(map(repr, BASH_APPS))}, not {bash_apps!r}")
        if worker_idle_time < 0:
            raise ValueError(
                f"worker_idle_time is in seconds and must not be negative, not {worker_idle_time}"
            )
        self.label = label
        self.instance = instance
        self.tasks_per_job = tasks_per_job
        self.max_active_jobs = max_active_jobs
        self.working_dir = working_dir
        self.environment = environment
        self.python = python
        self.storage_access = storage_access
        self.remote_monitoring_radio = remote_monitoring_radio or FilesystemRadio()
        self.worker_idle_time = worker_idle_time
        self.tasks_per_worker = tasks_per_worker
        self.bash_apps = bash_apps
        self.launch = launch
        self.address = address
        self.node_init = node_init
        self._lock = threading.Lock()
        self._functions = FunctionTable(without_parsl) if bash_apps == "native" else FunctionTable()
        self._cwd = ""
        self._last_task_id = 0
        self._pipeline: Pipeline[WorkerJob | TaskJob] | None = None
        self._closed = False

    def start(self) -> None:
        """Attach to the instance or start it; a second call does nothing."""
        super().start()  # type: ignore[no-untyped-call]
        with self._lock:
            if self._pipeline is not None:
                return
            self._closed = False
            self._cwd = os.getcwd()
            runtime = TaskRuntime(self._settings())
            pipeline = Pipeline[WorkerJob | TaskJob](
                self._instance(runtime),
                runtime,
                max_active_jobs=self.max_active_jobs,
                name=self.label,
                runtime=runtime,
            )
            runtime.bind(pipeline)
            pipeline.start()
            pipeline.close_with(self, grace=SHUTDOWN_GRACE)
            self._runtime, self._pipeline = runtime, pipeline

    def _instance(self, runtime: TaskRuntime) -> Instance:
        if self.provider is None:
            return choose_instance(self.instance)  # type: ignore[arg-type]
        federation = Federation()
        settings = self._block_settings(
            self._output,
            self.python or sys.executable,
            embedded=self.instance == "local",
            launch=self.launch,
            address=self.address,
            node_init=self.node_init,
        )
        blocks = Blocks(settings, federation, drain=runtime.drain)
        self._blocks = blocks
        return federation

    def _settings(self) -> WorkerSettings:
        directory = self.working_dir or os.path.join(self.run_dir, self.label)
        # Two executors, or two runs, may share a working directory.
        output = os.path.join(os.path.abspath(directory), f"jobs-{uuid.uuid4().hex[:8]}")
        os.makedirs(output, exist_ok=True)
        self._output = output
        own = self.environment or {}
        return WorkerSettings(
            label=self.label,
            python=self.python or sys.executable,
            output=output,
            cwd=self._cwd,
            # A block's jobs begin with the block's environment: what worker_init did there counts.
            environment=own if self.provider else {**base_environment(os.environ), **own},
            rlimits={} if self.provider else soft_limits(),
            sys_path=_own_sys_path() if self.python in (None, sys.executable) else (),
            tasks_per_job=self.tasks_per_job,
            tasks_per_worker=self.tasks_per_worker,
            worker_idle_time=float(self.worker_idle_time),
        )

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Run ``func(*args, **kwargs)`` with the given resources.

        Returns
        -------
        Future
            Ends with the result, with the exception that `func` raised, or with an error of
            :mod:`parsl_flux_bulk.errors`. Cancelling it ends a running task too.

        Raises
        ------
        parsl.executors.errors.InvalidResourceSpecification
            Names the key, its value, and what would be right.
        CallNotSerializable
            Names the argument that cannot travel.
        ExecutorClosed, InstanceLost
            Before `start`, after `shutdown`, or when the instance is gone.
        """
        resources = Resources.from_specification(resource_specification)
        if self.bash_apps == "native" and (resources.shape is None or self.tasks_per_job == 1):
            app = recognize(func)
            if app is not None:
                return self._submit_bare(app, resources, args, kwargs)
        function = self._functions.get(func)
        call = serialize_call(function.name, args, kwargs)
        return self._enqueue(resources, function, call)

    def _submit_bare(
        self, app: Callable[..., Any], resources: Resources, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Future[Any]:
        """Run a bash app as a job of its own; whatever is wrong with its command is that app's error."""
        self._running_agent()  # nothing of the user's runs, and no file is opened, for what is not accepted
        try:
            command, resources = render(app, args, kwargs, resources, self._cwd)
        except Exception as error:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future
        return self._enqueue(resources, command)

    def _enqueue(self, resources: Resources, run: Function | Command, call: bytes = b"") -> Future[Any]:
        # What takes long is done: only check, enqueue and wake happen under the lock.
        with self._lock:
            runtime = self._running_agent()
            self._last_task_id += 1
            new_future = functools.partial(TaskFuture, runtime)
            task: CallTask | CommandTask
            if isinstance(run, Command):
                task = CommandTask(self._last_task_id, resources, new_future, run)
            else:
                task = CallTask(self._last_task_id, resources, new_future, run, call)
            future = task.future
            runtime.put(task)
        return future

    def _running_agent(self) -> TaskRuntime:
        runtime = self._runtime
        if runtime is None:
            when = "after shutdown" if self._closed else "before start"
            raise ExecutorClosed(f"executor {self.label!r}: no tasks can be submitted {when}")
        return runtime

    def shutdown(self) -> None:
        """End every job and worker, and the instance if it is ours; bounded in time.

        Tasks that have not ended are cancelled. A second call, or one before `start`, does nothing.
        An executor that is garbage, or alive at the exit of the interpreter, is shut down likewise.
        """
        with self._lock:
            pipeline = self._pipeline
            self._runtime = self._pipeline = None
            self._closed = True
        if pipeline is not None:
            pipeline.close(grace=SHUTDOWN_GRACE)
        self._end_blocks()
        super().shutdown()

    def status_report(self) -> StatusReport | None:
        """Tasks by state, workers and cores by shape, jobs inside the instance; None unless started."""
        runtime = self._runtime
        return None if runtime is None else runtime.status()


def _own_sys_path() -> tuple[str, ...]:
    """Where this process finds modules beyond its interpreter's own: the script's directory, say.

    Modules beside the user's script are then importable in workers, as they are in the script.
    """
    libraries = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    standard = os.path.dirname(os.__file__) + os.sep
    entries = (os.path.abspath(entry) for entry in sys.path)
    return tuple(
        entry
        for entry in entries
        if entry not in libraries and not entry.startswith(standard) and os.path.isdir(entry)
    )
