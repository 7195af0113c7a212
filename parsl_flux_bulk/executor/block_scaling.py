"""Parsl's scaling interface: scale out and scale in of an executor with a provider.

Base class of :class:`~parsl_flux_bulk.executor.FluxBulkExecutor`, called by Parsl's scaling strategies and
status poller. :mod:`parsl_flux_bulk.blocks.manager` manages the blocks themselves.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState, JobStatus
from parsl.providers import LocalProvider
from parsl.utils import AtomicIDCounter

from parsl_flux_bulk.blocks.manager import Blocks, BlockSettings, addresses_of_this_host
from parsl_flux_bulk.blocks.start_failures import StartFailures
from parsl_flux_bulk.errors import ExecutorClosed
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.protocol.stderr_tail import read_tail
from parsl_flux_bulk.providers import seconds_of
from parsl_flux_bulk.scheduler.worker_unit import worker_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parsl.providers.base import ExecutionProvider

    from parsl_flux_bulk.executor.submission_queue import SubmissionQueue

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_FAILURES = (JobState.FAILED, JobState.MISSING)


class BlockScaling(BlockProviderExecutor):
    """Scale out and in, and report the status of the blocks."""

    cores_per_worker: float
    max_workers_per_node: int | None

    def __init__(
        self,
        *,
        provider: ExecutionProvider | None,
        block_error_handler: bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None],
    ) -> None:
        super().__init__(provider=provider, block_error_handler=block_error_handler)
        self._blocks: Blocks | None = None
        self._queue: SubmissionQueue | None = None
        self._failures = StartFailures()

    def _forget_blocks(self) -> None:
        """Forget the blocks of an earlier run: a configuration may be loaded again."""
        self._executor_bad_state.clear()
        self._executor_exception = None
        for known in (self.blocks_to_job_id, self.job_ids_to_block, self._simulated_status):
            known.clear()
        self._block_id_counter = AtomicIDCounter()
        self._status = {}
        self._last_poll_time = 0.0
        self._failures = StartFailures()

    def outstanding(self) -> int:
        """Return the slots that the tasks need that have not ended; Parsl compares them with those of blocks.

        A slot is a worker of a node, as in `workers_per_node`: a task of a whole node counts as all of them,
        and one that needs half of its GPUs as half of them. Before the first block has shown its size,
        all tasks together count as one: one block is asked for.
        """
        queue = self._queue
        if queue is None:
            return 0
        size = self._node_size
        if size is None:
            return min(1, queue.outstanding)
        bound = self.max_workers_per_node
        cores = sum(count * cores_of(need, *size, bound) for need, count in queue.demand())
        return math.ceil(cores * self.workers_per_node / size[0] - 1e-9)

    @property
    def _node_size(self) -> tuple[int, int] | None:
        """Cores and GPUs of a node: by the block that joined last, else by the provider; None if unknown."""
        seen = self._blocks.node_size if self._blocks is not None else None
        cores = getattr(self.provider, "cores_per_node", None)
        return seen or ((cores, 0) if cores else None)

    @property
    def workers_per_node(self) -> int:
        """Workers of `cores_per_worker` that fit a node: of a block that joined, else of the provider."""
        size = self._node_size
        if size is None:
            return 1
        return worker_unit(Shape(self.cores_per_worker), *size, self.max_workers_per_node).fitting(*size)

    # -- what code for HighThroughputExecutor asks ---------------------------------------------------

    @property
    def connected_workers(self) -> int:
        """Number of workers of the managers that are connected."""
        return sum(manager["worker_count"] for manager in self.connected_managers())

    def connected_managers(self) -> list[dict[str, Any]]:
        """Describe each manager that is connected: a process on a node, with its workers.

        Returns
        -------
        list of dict
            With the keys of HighThroughputExecutor: ``manager``, its name, which its tasks see as
            ``PARSL_WORKER_POOL_ID``; ``block_id``, None without a provider; ``worker_count``; ``tasks``;
            ``idle_duration``, in seconds; ``active``; ``draining``; ``python_version``.
        """
        queue = self._queue
        if queue is None or queue.scheduler is None:
            return []
        return queue.scheduler.managers(time.monotonic())

    def connected_blocks(self) -> list[str]:
        """Return the blocks that have ever joined, as HighThroughputExecutor does."""
        return sorted(self._blocks.all_joined, key=int) if self._blocks is not None else []

    def hold_block(self, block_id: str) -> None:
        """Give a block no more tasks; those that run there end, and the others move.

        Raises
        ------
        ValueError
            If there is no such block that has joined.
        """
        if self._blocks is None or not self._blocks.joined(block_id):
            raise ValueError(f"block {block_id!r} has not joined; those that have: {self.connected_blocks()}")
        self._blocks.hold(block_id)

    # -- scaling -------------------------------------------------------------------------------------

    def scale_out_facade(self, n: int) -> list[str]:
        """Launch blocks; fewer than `n`, or none, after blocks that ended before they joined."""
        allowed = self._failures.allowed(n, time.monotonic())
        if allowed < n:
            logger.debug("scale-out reduced executor=%s blocks=%d of %d", self.label, allowed, n)
        launched: list[str] = super().scale_out_facade(allowed) if allowed else []
        return launched

    def handle_errors(self, status: dict[str, JobStatus]) -> None:
        """Call the error handler with the blocks that count.

        Blocks that worked and have ended do not count, nor do those that failed before another one joined:
        with them, Parsl's handler, which gives up when all have failed, would never give up again.
        """
        own = self._blocks
        counting = {
            block_id: said
            for block_id, said in status.items()
            if block_id not in self._failures.forgiven
            and not (said.state in TERMINAL_STATES and own is not None and own.joined(block_id))
            and said.state is not JobState.SCALED_IN
        }
        super().handle_errors(counting)

    def _get_launch_command(self, block_id: str) -> str:
        if self._blocks is None:
            raise ExecutorClosed(f"executor {self.label!r}: blocks need an executor that is started")
        return self._blocks.command(block_id)

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Scale in, beginning with the blocks that have been idle longest.

        Parameters
        ----------
        blocks : int
            Number of blocks.
        max_idletime : float or None
            Choose only blocks that have been idle for more than so many seconds. None also chooses busy
            blocks: their running tasks end first, and their other tasks move to other blocks.

        Returns
        -------
        list of str
            The chosen blocks.
        """
        own = self._blocks
        if own is None or self.provider is None:
            return []
        alive = [block for block, status in self._status.items() if status.state not in TERMINAL_STATES]
        alive.sort(key=own.idle_time, reverse=True)
        if max_idletime is not None:
            alive = [block for block in alive if own.joined(block) and own.idle_time(block) > max_idletime]
        chosen = alive[:blocks]
        for block_id in chosen:
            own.retire(block_id, then=self._canceller(block_id))
        return chosen

    def _canceller(self, block_id: str) -> Callable[[], None]:
        return lambda: self._cancel_blocks([block_id])

    def _cancel_blocks(self, block_ids: Sequence[str]) -> None:
        """Cancel blocks at the provider; log the ones that cannot be canceled."""
        jobs = [
            self.blocks_to_job_id[block_id] for block_id in block_ids if block_id in self.blocks_to_job_id
        ]
        if not jobs or self.provider is None:
            return
        try:
            answers: Sequence[Any] = self.provider.cancel(jobs)
        except Exception as error:
            logger.error("cancel failed executor=%s blocks=%s: %s", self.label, list(block_ids), error)
            return
        left = [job for job, done in zip(jobs, answers, strict=False) if not done]
        if left:
            logger.warning("cancel refused by the provider executor=%s jobs=%s", self.label, left)

    def status(self) -> dict[str, JobStatus]:
        """Return the provider's status of the blocks.

        A block that ended before it joined has failed. One that joined and was lost, to preemption for
        example, has not: its state is COMPLETED.
        """
        status: dict[str, JobStatus] = super().status()
        own = self._blocks
        if own is None:
            return status
        failed = []
        for block_id, said in status.items():
            if said.state not in TERMINAL_STATES or said.state is JobState.SCALED_IN:
                continue
            if own.joined(block_id):
                if said.state in _FAILURES:
                    status[block_id] = _changed(
                        said, JobState.COMPLETED, f"block {block_id} worked, and was lost"
                    )
            elif said.state is not JobState.CANCELLED:
                failed.append(block_id)
                if block_id in self.blocks_to_job_id:
                    why = f"block {block_id} ended before it joined; see its log"
                    status[block_id] = _changed(said, JobState.FAILED, said.message or why)
        pause = self._failures.note(failed, own.all_joined, time.monotonic())
        if pause is not None:
            self._warn_of(status[failed[-1]], pause)
        return status

    def _warn_of(self, failed: JobStatus, pause: float) -> None:
        tail = read_tail(failed.stderr_path) if failed.stderr_path else ""
        logger.warning(
            "blocks fail executor=%s in_a_row=%d: %s; the next one is launched after %g s%s",
            self.label,
            self._failures.in_a_row,
            failed.message,
            pause,
            f". Its log ends with:\n{tail}" if tail else "",
        )

    def set_bad_state_and_fail_all(self, exception: Exception) -> None:
        """Fail all tasks, and those to come; called by Parsl's error handlers when blocks keep failing."""
        super().set_bad_state_and_fail_all(exception)
        queue = self._queue
        if queue is not None:
            queue.fail(BadStateException(self, exception))  # type: ignore[no-untyped-call]

    # -- for the executor -------------------------------------------------------------------------

    def _block_settings(
        self, directory: str, python: str, *, embedded: bool, launch: str, address: str | None, node_init: str
    ) -> BlockSettings:
        provider = self.provider
        # A provider that starts blocks on this machine needs no connection from other hosts.
        local = isinstance(provider, LocalProvider) and address is None
        once = bool(getattr(provider, "starts_flux", False))
        return BlockSettings(
            directory=directory,
            python=python,
            addresses=[LOOPBACK] if local else [address] if address else addresses_of_this_host(),
            listen=LOOPBACK if local else "*",
            launch="" if embedded or once else launch,
            once=once,
            walltime=seconds_of(getattr(provider, "walltime", None)),
            node_init=node_init,
        )

    def _end_blocks(self) -> None:
        """End every block: tell its program to end, and cancel the provider's job."""
        blocks, self._blocks = self._blocks, None
        if blocks is None:
            return
        blocks.close()
        left = [block for block, status in self._status.items() if status.state not in TERMINAL_STATES]
        self._cancel_blocks(
            [block for block in self.blocks_to_job_id if block in left or block not in self._status]
        )


def cores_of(need: Resources | Shape, cores: int, gpus: int, bound: int | None = None) -> float:
    """Return the cores that a task occupies: its share of a node of so many cores and GPUs.

    Tasks that leave a part of a node that no other of their kind fits count with that part.
    """
    if isinstance(need, Shape):
        # GPUs that no node is known to have do not count.
        unit = worker_unit(need if gpus else Shape(need.cores), cores, gpus, bound)
        return cores / max(1, unit.fitting(cores, gpus))
    if need.exclusive:
        return float(cores * (need.num_nodes or 1))
    each = cores_of(Shape(need.cores_per_task, need.gpus_per_task), cores, gpus)
    return each * need.num_tasks


def _changed(said: JobStatus, state: JobState, message: str) -> JobStatus:
    return JobStatus(state, message, said.exit_code, said.stdout_path, said.stderr_path)


# Parsl's strategy "htex_auto_scale" scales idle blocks in, by `scale_in` with `max_idletime`, if the executor
# is an instance of HighThroughputExecutor. Nothing else in Parsl checks for this class.
HighThroughputExecutor.register(BlockScaling)  # type: ignore[type-abstract]
