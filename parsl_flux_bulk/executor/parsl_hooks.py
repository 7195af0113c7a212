"""What an executor needs of Parsl beyond its interface: to wait in app calls, and to unload it in forks.

Parsl calls ``executor.submit`` in a thread of its own, which takes tasks from an unbounded queue. To wait
there would delay that thread, and not the script that calls apps. So the bound on pending tasks is kept in
``DataFlowKernel.submit``, which runs in the thread of the script.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from parsl.dataflow.dflow import DataFlowKernel, DataFlowKernelLoader
from parsl.dataflow.futures import AppFuture
from parsl.errors import NoDataFlowKernelError

from parsl_flux_bulk.executor.block_scaling import BlockScaling
from parsl_flux_bulk.executor.pending_limit import PendingLimit


def install_backpressure() -> None:
    """Let app calls wait for their executor's `pending_limit`; a second call does nothing."""
    original = DataFlowKernel.submit
    if hasattr(original, "keeps_pending_limits"):
        return

    @functools.wraps(original)
    def submit(self: DataFlowKernel, *args: Any, **kwargs: Any) -> AppFuture:
        limits = _limits(self, kwargs.get("executors", ()))  # apps give it by name
        entered: list[PendingLimit] = []
        try:
            for limit in limits.values():
                limit.enter()
                entered.append(limit)
            future = original(self, *args, **kwargs)
        except BaseException:
            for limit in entered:
                limit.leave()
            raise
        for label, limit in limits.items():
            if label == future.task_record["executor"]:
                _leave_at_end(limit, future, future.task_record["depends"])
            else:
                limit.leave()
        return future

    submit.keeps_pending_limits = True  # type: ignore[attr-defined]
    DataFlowKernel.submit = submit  # type: ignore[method-assign]


def _limits(kernel: DataFlowKernel, executors: Any) -> dict[str, PendingLimit]:
    """Return the limits of the executors of which Parsl may choose one for an app."""
    found = {}
    for label in kernel.executors if executors == "all" else executors:
        limit = getattr(kernel.executors.get(label), "pending_limit", None)
        if isinstance(limit, PendingLimit):
            found[label] = limit
    return found


def _leave_at_end(limit: PendingLimit, future: AppFuture, depends: Sequence[Future[Any]]) -> None:
    """Count a task, which is counted already, until it ends; but not while it waits for other tasks.

    Those may be tasks that a thread still has to submit: it must not wait for this one.
    """
    unfinished = next((other for other in depends if not other.done()), None)
    if unfinished is None:
        future.add_done_callback(limit.leave)
        return
    limit.leave()

    def count_again(_: object) -> None:
        limit.count()
        _leave_at_end(limit, future, depends)

    unfinished.add_done_callback(count_again)


def _unload_parsl() -> None:
    """Unload Parsl's configuration in a fork of the script.

    A fork has none of Parsl's threads, so an app's future would never end there. Without a configuration, the
    call of an app raises NoDataFlowKernelError, and the fork can load a configuration of its own.
    """
    with contextlib.suppress(NoDataFlowKernelError):
        executors = DataFlowKernelLoader.dfk().executors.values()
        if any(isinstance(executor, BlockScaling) for executor in executors):
            DataFlowKernelLoader.clear()


os.register_at_fork(after_in_child=_unload_parsl)
