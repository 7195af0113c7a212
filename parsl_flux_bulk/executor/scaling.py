"""Parsl's scaling interface: scale out and scale in of an executor with a provider.

Base class of :class:`~parsl_flux_bulk.executor.FluxBulkExecutor`, called by Parsl's scaling strategies and
status poller. :mod:`parsl_flux_bulk.blocks.manager` manages the blocks themselves.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState, JobStatus
from parsl.providers import LocalProvider

from parsl_flux_bulk.blocks.manager import Blocks, BlockSettings, addresses_of_this_host
from parsl_flux_bulk.errors import ExecutorClosed
from parsl_flux_bulk.providers import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parsl.providers.base import ExecutionProvider

    from parsl_flux_bulk.executor.submission_queue import SubmissionQueue

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class BlockScaling(BlockProviderExecutor):
    """Scale out and in, and report the status of the blocks."""

    def __init__(
        self,
        *,
        provider: ExecutionProvider | None,
        block_error_handler: bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None],
    ) -> None:
        super().__init__(provider=provider, block_error_handler=block_error_handler)
        self._blocks: Blocks | None = None
        self._queue: SubmissionQueue | None = None

    def outstanding(self) -> int:
        """Return the number of tasks that have not ended."""
        queue = self._queue
        return 0 if queue is None else queue.outstanding

    @property
    def workers_per_node(self) -> int:
        """One-core workers that fit a node: by the blocks that joined, else by the provider, else 1."""
        seen = self._blocks.slots_per_node if self._blocks is not None else None
        return seen or getattr(self.provider, "cores_per_node", None) or 1

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
        """Return the provider's status of the blocks. A block that ended before it joined has failed."""
        status: dict[str, JobStatus] = super().status()
        own = self._blocks
        if own is not None:
            for block_id, said in status.items():
                if said.state is JobState.COMPLETED and not own.joined(block_id):
                    status[block_id] = JobStatus(
                        JobState.FAILED,
                        f"block {block_id} ended before it joined; see its log",
                        said.exit_code,
                        said.stdout_path,
                        said.stderr_path,
                    )
        return status

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


# Parsl's strategy "htex_auto_scale" scales idle blocks in, by `scale_in` with `max_idletime`, if the executor
# is an instance of HighThroughputExecutor. Nothing else in Parsl checks for this class.
HighThroughputExecutor.register(BlockScaling)  # type: ignore[type-abstract]
