"""FluxBulkExecutor: turn app invocations into tasks, and start and shut down what runs them."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import typeguard
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import JobStatus
from parsl.monitoring.radios.base import RadioConfig
from parsl.monitoring.radios.filesystem import FilesystemRadio
from parsl.providers.base import ExecutionProvider
from parsl.utils import RepresentationMixin

from parsl_flux_bulk.blocks.manager import Blocks
from parsl_flux_bulk.errors import ExecutorClosed, InitializerFailed
from parsl_flux_bulk.executor.bash_apps import check_keywords, recognize, render, without_parsl
from parsl_flux_bulk.executor.block_scaling import BlockScaling
from parsl_flux_bulk.executor.inspection import Inspection
from parsl_flux_bulk.executor.job_factory import WorkerSettings
from parsl_flux_bulk.executor.node_info import NodeInfo
from parsl_flux_bulk.executor.parsl_hooks import install_backpressure
from parsl_flux_bulk.executor.pending_limit import PendingLimit, submit_within
from parsl_flux_bulk.executor.runtime import TaskPipeline, TaskRuntime
from parsl_flux_bulk.executor.serialize_calls import FunctionTable, own_sys_path, serialize_call, walltime_of
from parsl_flux_bulk.executor.submission_queue import SubmissionQueue
from parsl_flux_bulk.executor.task_resources import TaskResources, not_a_specification
from parsl_flux_bulk.executor.task_trace import TaskTrace, configuration, open_trace
from parsl_flux_bulk.executor.validate_arguments import validate_arguments
from parsl_flux_bulk.instances.factory import choose_instance
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.jobspec.job_environment import base_environment, soft_limits
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.pipeline.callbacks import CallbackFuture
from parsl_flux_bulk.pipeline.pipeline import Pipeline
from parsl_flux_bulk.protocol.serialize import with_walltime
from parsl_flux_bulk.scheduler.task import CallTask, CommandTask, Task
from parsl_flux_bulk.trace.format import SUFFIX

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="FluxBulkExecutor")

SHUTDOWN_GRACE = 2.0
"""Seconds that workers get at shutdown to end by themselves before their jobs are canceled."""


class FluxBulkExecutor(BlockScaling, TaskResources, Inspection, RepresentationMixin):
    """Run Parsl apps through Flux: many small tasks, and large MPI or GPU tasks.

    By default, invocations whose ``parsl_resource_specification`` has no keys but ``cores_per_task`` and
    ``gpus_per_task`` share warm Python workers, and every other invocation is a Flux job of its own.
    ``docs/resources.md`` lists the keys.

    Parameters
    ----------
    label : str
        Name of this executor, unique in a Parsl configuration.
    instance : None, str or Instance
        Where jobs run: ``"local"`` for this machine without Flux; ``"flux"`` for a new Flux instance, which
        ends with the executor; a URI (``local://…``, ``ssh://…``) for a running Flux instance. None chooses:
        the instance in ``FLUX_URI``; else a new Flux instance if there is a ``flux`` command; else this
        machine.
    tasks_per_job : int or None
        1 makes every invocation a job of its own. None lets small ones share warm workers.
    max_active_jobs : int or None
        Bound on the jobs inside the instance at any time. None means a bound that depends on its size.
    working_dir : str or None
        Directory for the output of jobs and workers, on a file system that the nodes share. None means the
        directory ``label`` in Parsl's run directory.
    environment : dict or None
        Environment variables to add for every job. A job has the environment of this process, without the
        variables of an enclosing batch system's launcher (see ``docs/mpi.md``). In a block, a job has the
        environment of the block.
    python : str or None
        Python interpreter of the workers. None means the one of this process.
    storage_access : list of Staging or None
        Parsl's data staging providers.
    remote_monitoring_radio : RadioConfig or None
        How tasks report to Parsl's monitoring. None means through files on the shared file system.
    worker_idle_time : float or None
        Seconds after which a worker without tasks ends; None means never. When other tasks wait for its
        cores, it ends at once.
    tasks_per_worker : int or None
        Tasks after which a worker process is replaced, for user code that leaks memory. None means never.
    max_workers : int or None
        Bound on the warm workers of one shape (cores and GPUs). None means as many as fit the instance.
    max_workers_per_node : int or None
        The same on one node, whose cores they divide among them. None means as many as fit.
    cores_per_worker : float
        Cores of a warm worker whose tasks name no ``cores_per_task``. With 0.5, two workers share a core.
    max_pending_tasks : int or None
        Bound on the tasks that could run and have not ended: further calls of apps wait. See
        ``docs/executor.md``.
    initializer : callable or None
        Called in each worker process before its first task, with `initargs`. If it raises, all tasks end with
        InitializerFailed.
    initargs : tuple
        Arguments of `initializer`.
    isolation : str
        ``"worker"``: a worker process runs one task after another, and puts back what each has changed in the
        process, such as its working directory. ``"task"``: a new process is forked for each task, so that
        nothing of a task reaches another. See ``docs/executor.md``.
    bash_apps : str
        ``"native"``: the command of a bash app that needs a job of its own becomes the command of that job,
        without Python, and workers run small bash apps without importing Parsl. ``"python"``: Parsl's own
        code runs bash apps. See ``docs/bash-apps.md``.
    provider : ExecutionProvider or None
        A Parsl provider of blocks. Each block becomes an instance, and tasks are spread over the blocks; see
        ``docs/blocks.md``. `instance` must then be None, or ``"local"`` for blocks of one node without Flux.
    launch : str
        With a provider: the command that starts a Flux instance in a block.
    address : str or None
        With a provider: address of this host to which blocks connect. None means all addresses it has.
    node_init : str
        With a provider: shell command that runs once on each node of a block, before any worker starts.
    block_error_handler : bool or callable
        With a provider: what to do when blocks fail, as for Parsl's HighThroughputExecutor.
    trace : bool
        Write what happens, and when, to a file in the output directory, for ``flux-bulk report``,
        ``flux-bulk top`` and your own analysis. See ``docs/trace.md``.

    Raises
    ------
    ValueError
        From the constructor, for an argument out of its range.
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
        worker_idle_time: int | float | None = 3.0,
        tasks_per_worker: int | None = None,
        max_workers: int | None = None,
        max_workers_per_node: int | None = None,
        cores_per_worker: int | float = 1,
        max_pending_tasks: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        isolation: str = "worker",
        bash_apps: str = "native",
        provider: ExecutionProvider | None = None,
        launch: str = "flux start",
        address: str | None = None,
        node_init: str = "",
        block_error_handler: bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None] = True,
        trace: bool = True,
    ) -> None:
        super().__init__(provider=provider, block_error_handler=block_error_handler)
        validate_arguments(
            instance=instance,
            provider=provider,
            tasks_per_job=tasks_per_job,
            max_active_jobs=max_active_jobs,
            max_workers=max_workers,
            max_pending_tasks=max_pending_tasks,
            max_workers_per_node=max_workers_per_node,
            cores_per_worker=cores_per_worker,
            tasks_per_worker=tasks_per_worker,
            isolation=isolation,
            bash_apps=bash_apps,
            worker_idle_time=worker_idle_time,
            environment=environment or {},
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
        self.max_workers = max_workers
        self.max_pending_tasks = max_pending_tasks
        self.max_workers_per_node = max_workers_per_node
        self.cores_per_worker = cores_per_worker
        self.initializer = initializer
        self.initargs = initargs
        self.isolation = isolation
        self.bash_apps = bash_apps
        self.launch = launch
        self.address = address
        self.node_init = node_init
        self.trace = trace
        self._lock = threading.Lock()
        replacement = without_parsl if bash_apps == "native" else lambda function: function
        self._functions = FunctionTable(replacement, initializer and (initializer, initargs))
        self._cwd = ""
        self._last_task_id = 0
        self._pipeline: TaskPipeline | None = None
        self._trace: TaskTrace | None = None
        self._closed = False
        self._started_run_id: str | None = None
        self.pending_limit: PendingLimit | None = None
        if max_pending_tasks is not None:
            install_backpressure()

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Attach to the instance, or start it; a second call in the same run does nothing."""
        self._refuse_fork()
        super().start()  # type: ignore[no-untyped-call]
        if self._started_run_id not in (None, self.run_id):
            # A load of Parsl failed after this executor had started, and the Config is loaded again.
            self._end()
        with self._lock:
            if self._pipeline is not None:
                return
            self._closed = False
            self._started_run_id = self.run_id
            if self.max_pending_tasks is not None:
                self.pending_limit = PendingLimit(self.max_pending_tasks, self.label)
            self._cwd = os.getcwd()
            settings = self._settings()
            if self.python in (None, sys.executable):
                self._functions.follow_sys_path(settings.sys_path)
            federation = None if self.provider is None else Federation()
            pipeline: TaskPipeline = Pipeline(
                choose_instance(self.instance) if federation is None else federation,  # type: ignore[arg-type]
                max_active_jobs=self.max_active_jobs,
                name=self.label,
            )
            queue = SubmissionQueue(pipeline.wake)
            self._forget_blocks()
            trace = self._open_trace(settings.output, queue) if self.trace else None
            open_runtime = functools.partial(
                TaskRuntime, settings, pipeline, queue, trace=trace, node_info=self._node_info()
            )
            try:
                if federation is not None:
                    self._start_blocks(federation, settings, queue)
                    if trace is not None and self._blocks is not None:
                        trace.blocks = self._blocks.states
                pipeline.start(open_runtime, fail=queue.fail)
            except BaseException:
                self._end_blocks()
                if trace is not None:
                    trace.close()
                raise
            pipeline.close_with(self, grace=SHUTDOWN_GRACE)
            self._queue, self._pipeline, self._output = queue, pipeline, settings.output
            self._trace = trace

    def _open_trace(self, directory: str, queue: SubmissionQueue) -> TaskTrace | None:
        about = {"label": self.label, "config": configuration(self)}
        trace = open_trace(os.path.join(directory, f"tasks{SUFFIX}"), about, queue)
        if trace is not None:
            # Before that of the pipeline, and so called after it.
            trace.close_with(self)
        return trace

    def _node_info(self) -> NodeInfo | None:
        radio = self.submit_monitoring_radio
        return None if radio is None else NodeInfo(radio.send, self.run_id or "")

    def _start_blocks(self, federation: Federation, settings: WorkerSettings, queue: SubmissionQueue) -> None:
        block_settings = self._block_settings(
            settings.output,
            settings.python,
            embedded=self.instance == "local",
            launch=self.launch,
            address=self.address,
            node_init=self.node_init,
        )
        blocks = Blocks(block_settings, federation, drain=queue.drain)
        self._blocks = blocks

    def _settings(self) -> WorkerSettings:
        directory = self.working_dir or os.path.join(self.run_dir, self.label)
        # Two executors, or two runs, may share a working directory.
        output = os.path.join(os.path.abspath(directory), f"jobs-{uuid.uuid4().hex[:8]}")
        os.makedirs(output, exist_ok=True)
        own = self.environment or {}
        return WorkerSettings(
            label=self.label,
            python=self.python or sys.executable,
            output=output,
            cwd=self._cwd,
            # The jobs of a block start with the environment of the block, which worker_init has set up.
            environment=own if self.provider else {**base_environment(os.environ), **own},
            rlimits={} if self.provider else soft_limits(),
            sys_path=own_sys_path() if self.python in (None, sys.executable) else (),
            tasks_per_job=self.tasks_per_job,
            tasks_per_worker=1 if self.isolation == "task" else self.tasks_per_worker,
            max_workers=self.max_workers,
            max_workers_per_node=self.max_workers_per_node,
            worker_idle_time=math.inf if self.worker_idle_time is None else float(self.worker_idle_time),
        )

    def submit(
        self,
        func: Callable[..., Any],
        resource_specification: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Future[Any]:
        """Run ``func(*args, **kwargs)`` with the given resources.

        Returns
        -------
        Future
            Ends with the result, with the exception that `func` raised, or with an error of
            :mod:`parsl_flux_bulk.errors`. Canceling the future also ends a running task.

        Raises
        ------
        parsl.executors.errors.InvalidResourceSpecification
            Names the key, its value, and what would be right.
        TypeError
            There is no resource specification.
        CallNotSerializable
            Names the argument that cannot be serialized.
        ExecutorClosed, InstanceLost
            Before `start`, after `shutdown`, in a fork of the script, or when the instance is lost.
        """
        self._refuse_fork()
        if not isinstance(resource_specification, Mapping):
            raise not_a_specification(resource_specification)
        # Below Parsl, app calls have waited already: Parsl's own thread calls this method.
        limit = self.pending_limit if self.run_id is None else None
        return submit_within(limit, lambda: self._submit(func, resource_specification, args, kwargs))

    def _submit(
        self, func: Callable[..., Any], specification: Mapping[str, Any], args: Any, kwargs: dict[str, Any]
    ) -> Future[Any]:
        resources = self.resources_of(specification)
        check_keywords(func, kwargs)
        if self.bash_apps == "native" and (resources.shape is None or self.tasks_per_job == 1):
            app = recognize(func)
            if app is not None:
                self._running_queue()  # before any of the user's code runs, and any file is opened
                try:
                    command, resources = render(app, args, kwargs, resources, self._cwd)
                except Exception as error:
                    # Whatever is wrong with its command is the app's error, as if a worker had found it.
                    future: Future[Any] = CallbackFuture()
                    future.set_exception(error)
                    return future
                return self._enqueue(
                    lambda task_id, new_future: CommandTask(task_id, resources, new_future, command)
                )
        return self.submit_call(func, resources, args, kwargs)

    def submit_call(
        self, func: Callable[..., Any], resources: Resources, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        """Run ``func(*args, **kwargs)`` in Python, at once; see `submit`."""
        self._refuse_fork()
        function = self._functions.get(func)
        call = serialize_call(function.name, args, kwargs)
        walltime = walltime_of(func)
        if walltime is not None:
            call = with_walltime(walltime, call)
        future = self._enqueue(
            lambda task_id, new_future: CallTask(task_id, resources, new_future, function, call)
        )
        if self.initializer is not None and (queue := self._queue) is not None:
            future.add_done_callback(functools.partial(_fail_if_not_initialized, queue))
        return future

    def _enqueue(self, make_task: Callable[[int, Callable[[Task], Future[Any]]], Task]) -> Future[Any]:
        # Rendering and serializing are done: only check, enqueue and wake happen under the lock.
        with self._lock:
            queue = self._running_queue()
            self._last_task_id += 1
            task = make_task(self._last_task_id, queue.new_future)
            task.submitted = time.monotonic()
            future = task.future
            queue.put(task)
        return future

    def _running_queue(self) -> SubmissionQueue:
        queue = self._queue
        if queue is None:
            when = "after shutdown" if self._closed else "before start"
            raise ExecutorClosed(f"executor {self.label!r}: tasks cannot be submitted {when}")
        return queue

    def _refuse_fork(self) -> None:
        # Before any lock is taken, which another thread may have held at the time of the fork.
        if self._pipeline is not None:
            self._pipeline.refuse_fork()

    def shutdown(self) -> None:
        """End every job and worker, and the instance if the executor started it; bounded in time.

        Tasks that have not ended are canceled. A second call, or a call before `start`, does nothing.
        An executor that is garbage, or that still runs when the interpreter exits, is shut down the same way.
        In a fork of the script, nothing is ended.
        """
        if self._pipeline is not None and self._pipeline.forked:
            return
        self._end()
        super().shutdown()

    def _end(self) -> None:
        with self._lock:
            pipeline = self._pipeline
            self._queue = self._pipeline = self._started_run_id = None
            self._closed = True
        if self.pending_limit is not None:
            self.pending_limit.close()
        if pipeline is not None:
            pipeline.close(grace=SHUTDOWN_GRACE)
            if self._trace is not None:
                self._trace.close()
            with contextlib.suppress(OSError):  # not empty: it has output
                os.rmdir(self._output)
        self._end_blocks()


def _fail_if_not_initialized(queue: SubmissionQueue, future: Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    if isinstance(error, InitializerFailed):
        queue.fail(error)
