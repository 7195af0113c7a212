"""FluxPoolExecutor: the executor of :mod:`concurrent.futures` whose workers are jobs of Flux.

Its tasks take the way of those of :class:`~parsl_flux_bulk.executor.FluxBulkExecutor`, which it owns.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from parsl.jobs.job_status_poller import JobStatusPoller

from parsl_flux_bulk.errors import ExecutorClosed
from parsl_flux_bulk.executor.executor import FluxBulkExecutor
from parsl_flux_bulk.executor.pending_limit import submit_within
from parsl_flux_bulk.executor.runtime import StatusReport
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.pool.ordered_map import OrderedMap
from parsl_flux_bulk.scheduler.story import Record

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

P = ParamSpec("P")
T = TypeVar("T")

POLL_PERIOD = 1.0
"""Seconds between two decisions about blocks; each asks the provider only as often as the provider allows."""

MAX_IDLE_TIME = 120.0
"""Seconds after which idle blocks are scaled in, as in Parsl's default configuration."""

DIRECTORY = "runinfo"
"""Directory for the output of jobs, in the current one: that of Parsl's runs."""


class _Engine:
    """The executor of the tasks. Starts with the first task; outlives its users for as long as tasks run."""

    def __init__(self, executor: FluxBulkExecutor) -> None:
        self.executor = executor
        self._lock = threading.Lock()
        self._pid = 0
        self._finished = False
        self.closed = False
        self._poller: JobStatusPoller | None = None

    def start(self) -> None:
        executor = self.executor
        with self._lock:
            if self._pid:
                return
            executor.run_dir = os.path.abspath(DIRECTORY)
            self._set_script_dir()
            executor.start()
            self._pid = os.getpid()
            if executor.provider is not None:
                self._poller = JobStatusPoller(
                    strategy="htex_auto_scale", max_idletime=MAX_IDLE_TIME, strategy_period=POLL_PERIOD
                )
                self._poller.add_executors([executor])
        # After the executor's own handler, and so called before it: tasks end before the interpreter does.
        atexit.register(self.finish)

    def _set_script_dir(self) -> None:
        """Give the provider a directory for its scripts, as the DataFlowKernel does."""
        executor = self.executor
        provider: Any = executor.provider
        if provider is not None and getattr(provider, "script_dir", "") is None:
            directory = executor.working_dir or os.path.join(executor.run_dir, executor.label)
            provider.script_dir = os.path.join(os.path.abspath(directory), "submit_scripts")
            os.makedirs(provider.script_dir, exist_ok=True)

    def submit(self, resources: Resources, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        return self.executor.submit_call(fn, resources, args, {})

    def slots(self, resources: Resources) -> int:
        self.submit(resources, int).result()  # the size is known from then on
        queue = self.executor.queue
        return queue.slots(resources) if queue is not None else 1

    def has_one_node(self) -> bool:
        queue = self.executor.queue
        return self.executor.provider is None and queue is not None and queue.nodes == 1

    def workers(self) -> int:
        queue = self.executor.queue
        return queue.workers if queue is not None else 0

    def cancel_pending(self, futures: Collection[Future[Any]] | None = None) -> None:
        queue = self.executor.queue
        if queue is not None:
            queue.cancel_pending(futures)

    def join(self) -> None:
        queue = self.executor.queue
        if queue is not None and self._pid == os.getpid():
            queue.join()

    def finish(self) -> None:
        """Wait until all tasks have ended, and shut down."""
        self.join()
        with self._lock:
            poller, self._poller = self._poller, None
            started = self._pid == os.getpid() and not self._finished
            self._finished = True
        if poller is not None:
            poller.close()
        self.executor.shutdown()
        if started:
            atexit.unregister(self.finish)
            run_dir = self.executor.run_dir
            for directory in (os.path.join(run_dir, self.executor.label), run_dir):
                with contextlib.suppress(OSError):  # others use it, or it does not exist
                    os.rmdir(directory)

    def finish_later(self) -> None:
        """Do the same in a thread, for which the interpreter waits."""
        if self._pid == os.getpid() and not self._finished:
            threading.Thread(target=self.finish, name="flux-pool-finish", daemon=False).start()


class _Face(Executor):
    """What :mod:`concurrent.futures` asks for, for calls with the same resources."""

    def __init__(self, engine: _Engine, resources: Resources) -> None:
        self._engine = engine
        self._resources = resources

    def _start(self) -> None:
        if self._engine.closed:
            raise ExecutorClosed("cannot schedule new futures after shutdown")
        self._engine.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)``.

        Returns
        -------
        Future
            Unlike those of other executors, canceling it also ends a running call.

        Raises
        ------
        CallNotSerializable
            Names the argument, or the variable that `fn` uses, that cannot be serialized.
        ExecutorClosed
            After `shutdown`. A RuntimeError.
        InstanceUnavailable, InstanceLost, InitializerFailed
            Subclasses of :class:`concurrent.futures.BrokenExecutor`.
        """
        self._start()
        executor = self._engine.executor
        return submit_within(
            executor.pending_limit, lambda: executor.submit_call(fn, self._resources, args, kwargs)
        )

    def submit_now(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)``; do not wait for `max_pending_tasks`.

        For callers that hold a lock that callbacks of their futures need.
        """
        self._start()
        return self._engine.executor.submit_call(fn, self._resources, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` with the items of the iterables, and yield the results in order.

        Parameters
        ----------
        timeout : float or None
            Seconds from now after which taking a result raises TimeoutError.
        chunksize : int or None
            Items of a task. None measures: a task gets as many items as take 20 ms.
        buffersize : int or None
            Items that are taken from the iterables before their results are. None takes all at once.

        Raises
        ------
        ValueError, TypeError
            For a `chunksize` or `buffersize` that is not a positive integer.
        """
        for name, value in (("chunksize", chunksize), ("buffersize", buffersize)):
            if value is not None and not isinstance(value, int):
                raise TypeError(f"{name} must be an integer or None, not {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1 or None, not {value}")
        deadline = None if timeout is None else time.monotonic() + timeout
        self._start()
        engine, resources = self._engine, self._resources
        return OrderedMap(
            lambda function, items: engine.submit(resources, function, items),
            engine.cancel_pending,
            engine.workers,
            fn,
            iterables,
            # A job of its own is for one call.
            chunksize or (None if resources.shape is not None else 1),
            buffersize,
        ).results(deadline)

    def slots(self) -> int:
        """Return the number of calls that may run at the same time, once the instance is ready."""
        self._start()
        return self._engine.slots(self._resources)

    def has_one_node(self) -> bool:
        """Return whether all calls run on one node; False before the instance is ready."""
        return self._engine.has_one_node()

    def with_resources(self, **specification: Any) -> Executor:
        """Return an executor whose calls have these resources, over the same workers and instance.

        Parameters
        ----------
        **specification
            The keys of a ``parsl_resource_specification`` (``docs/resources.md``), such as ``num_tasks=8``.

        Raises
        ------
        parsl.executors.errors.InvalidResourceSpecification
            Names the key, its value, and what would be right.
        """
        return _WithResources(self, self._engine, self._engine.executor.resources_of(specification))


class _WithResources(_Face):
    """An executor over another one. Its shutdown waits for the tasks of both, and ends neither."""

    def __init__(self, parent: _Face, engine: _Engine, resources: Resources) -> None:
        super().__init__(engine, resources)
        self._parent = parent  # which shuts down when it is garbage

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            raise ValueError("cancel_futures: shut down the FluxPoolExecutor, or cancel the futures")
        if wait:
            self._engine.join()


class FluxPoolExecutor(_Face):
    """Run functions through Flux, as :class:`concurrent.futures.ProcessPoolExecutor` does on one machine.

    Workers start with the first task, and there are as many as tasks need and fit the instance. See
    ``docs/without-parsl.md``.

    Parameters
    ----------
    max_workers : int or None
        Bound on the workers. None means as many as fit the instance, which is also the limit of any number.
    initializer : callable or None
        Called in each worker process before its first task, with `initargs`.
    initargs : tuple
    max_tasks_per_child : int or None
        Tasks after which a worker process is replaced. None means never.
    instance : None, str or Instance
        Where workers run: ``"local"``, ``"flux"``, or a URI; see FluxBulkExecutor. None chooses.
    provider : ExecutionProvider or None
        A Parsl provider of allocations, which are requested and released as tasks need them.
    **options
        All other parameters of FluxBulkExecutor, such as ``python``, ``environment`` or ``isolation``. The
        default of ``trace`` is False here, so that a run leaves no file behind.

    Raises
    ------
    ValueError, TypeError
        For an argument out of its range, or of another type.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        instance: Any = None,
        provider: ExecutionProvider | None = None,
        label: str = "FluxPoolExecutor",
        **options: Any,
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers must be greater than 0, or None, not {max_workers}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r}")
        executor = FluxBulkExecutor(
            label=label,
            max_workers=max_workers,
            initializer=initializer,
            initargs=initargs,
            tasks_per_worker=max_tasks_per_child,
            instance=instance,
            provider=provider,
            **{"trace": False, **options},
        )
        super().__init__(_Engine(executor), executor.resources_of({}))
        weakref.finalize(self, self._engine.finish_later).atexit = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers, and the instance if the executor started it, when all tasks have ended.

        Parameters
        ----------
        wait : bool
            Wait until then. Otherwise the interpreter waits at its exit.
        cancel_futures : bool
            Cancel the tasks that have not begun.
        """
        self._engine.closed = True
        if cancel_futures:
            self._engine.cancel_pending()
        if wait:
            self._engine.finish()
        else:
            self._engine.finish_later()

    def status_report(self) -> StatusReport | None:
        """Return counts of tasks, workers and jobs; None until started."""
        return self._engine.executor.status_report()

    def story(self, future: Future[Any]) -> list[Record]:
        """Return what the scheduler decided about a task, and why; see FluxBulkExecutor.story."""
        return self._engine.executor.story(future)
