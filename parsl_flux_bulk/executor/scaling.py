"""Parsl's scaling interface: how an executor with a provider gets blocks, and gives them back.

The half of :class:`~parsl_flux_bulk.executor.FluxBulkExecutor` that Parsl's scaling strategies and status
poller talk to. The blocks themselves are :mod:`parsl_flux_bulk.blocks.manager`' affair.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState, JobStatus
from parsl.providers import LocalProvider

from parsl_flux_bulk.blocks.manager import Blocks, BlockSettings, addresses_of_this_host, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parsl.providers.base import ExecutionProvider

    from parsl_flux_bulk.executor.runtime import TaskRuntime

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class BlockScaling(BlockProviderExecutor):
    """Scale out and in, and say how the blocks are."""

    def __init__(
        self,
        *,
        provider: ExecutionProvider | None,
        block_error_handler: bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None],
    ) -> None:
        super().__init__(provider=provider, block_error_handler=block_error_handler)
        self._blocks: Blocks | None = None
        self._runtime: TaskRuntime | None = None

    def outstanding(self) -> int:
        """Tasks that have not ended."""
        runtime = self._runtime
        return 0 if runtime is None else runtime.outstanding

    @property
    def workers_per_node(self) -> int:
        """Workers of one core that fit a node: what a block showed, else what the provider says, else 1."""
        seen = self._blocks.slots_per_node if self._blocks is not None else None
        return seen or getattr(self.provider, "cores_per_node", None) or 1

    def _get_launch_command(self, block_id: str) -> str:
        assert self._blocks is not None, "start() comes first"
        return self._blocks.command(block_id)

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Give blocks back, the longest idle first.

        Parameters
        ----------
        blocks : int
            How many.
        max_idletime : float or None
            Only those that have had nothing to do for so many seconds; None also takes busy ones,
            which end when what runs there has ended; what has not started moves to others.

        Returns
        -------
        list of str
            The blocks that are given back.
        """
        own = self._blocks
        if own is None or self.provider is None:
            return []
        there = [block for block, status in self._status.items() if status.state not in TERMINAL_STATES]
        there.sort(key=own.idle_time, reverse=True)
        if max_idletime is not None:
            there = [block for block in there if own.joined(block) and own.idle_time(block) > max_idletime]
        chosen = there[:blocks]
        for block_id in chosen:
            own.retire(block_id, then=self._canceller(block_id))
        return chosen

    def _canceller(self, block_id: str) -> Callable[[], None]:
        return lambda: self._cancel_blocks([block_id])

    def _cancel_blocks(self, block_ids: Sequence[str]) -> None:
        """Cancel blocks at the provider; one that cannot be cancelled is named in the log."""
        assert self.provider is not None
        jobs = [
            self.blocks_to_job_id[block_id] for block_id in block_ids if block_id in self.blocks_to_job_id
        ]
        if not jobs:
            return
        try:
            answers: Sequence[Any] = self.provider.cancel(jobs)
        except Exception as error:
            logger.error("%s: blocks %s could not be cancelled: %s", self.label, list(block_ids), error)
            return
        left = [job for job, done in zip(jobs, answers, strict=False) if not done]
        if left:
            logger.warning("%s: the provider did not cancel %s", self.label, left)

    def status(self) -> dict[str, JobStatus]:
        """What the provider says of the blocks; one that ended before it ever joined has failed."""
        status: dict[str, JobStatus] = super().status()
        own = self._blocks
        if own is not None:
            for block_id, said in status.items():
                if said.state is JobState.COMPLETED and not own.joined(block_id):
                    status[block_id] = JobStatus(
                        JobState.FAILED,
                        f"block {block_id} ended before it joined; its own log says why",
                        said.exit_code,
                        said.stdout_path,
                        said.stderr_path,
                    )
        return status

    def set_bad_state_and_fail_all(self, exception: Exception) -> None:
        """Fail all tasks, and those to come; Parsl's error handlers call it when blocks keep failing."""
        super().set_bad_state_and_fail_all(exception)
        runtime = self._runtime
        if runtime is not None:
            runtime.fail(BadStateException(self, exception))  # type: ignore[no-untyped-call]

    # -- for the executor -------------------------------------------------------------------------

    def _block_settings(
        self, directory: str, python: str, *, embedded: bool, launch: str, address: str | None, node_init: str
    ) -> BlockSettings:
        provider = self.provider
        # Blocks of a provider of this very machine need nobody else to reach us.
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
        """End every block, at its own end and at the provider's."""
        blocks, self._blocks = self._blocks, None
        if blocks is None:
            return
        blocks.close()
        left = [block for block, status in self._status.items() if status.state not in TERMINAL_STATES]
        self._cancel_blocks(
            [block for block in self.blocks_to_job_id if block in left or block not in self._status]
        )


# Parsl's strategy "htex_auto_scale" gives idle blocks back while others work, by `scale_in` with
# `max_idletime`, and does so for whatever passes for a HighThroughputExecutor. Nothing else asks.
HighThroughputExecutor.register(BlockScaling)  # type: ignore[type-abstract]
