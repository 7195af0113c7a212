"""What the tests of blocks share: executors on blocks of this machine, how many there are, their programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import helpers
import psutil
import pytest
from parsl.jobs.states import JobState
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from parsl_flux_bulk import FluxBulkExecutor

BOUND = 60.0
"""Seconds that a task, or a block's coming or going, may take."""

KINDS = ["local", pytest.param("flux", marks=pytest.mark.flux)]


class Local(LocalProvider):
    """LocalProvider whose blocks are looked at often, and that may have a walltime."""

    status_polling_interval = 0.5
    walltime: str | None = None


def new_executor(kind: str, provider: ExecutionProvider | None = None, **options: Any) -> FluxBulkExecutor:
    provider = provider or Local(init_blocks=2, max_blocks=2)
    return FluxBulkExecutor(
        label="blocks", instance="local" if kind == "local" else None, provider=provider, **options
    )


Running = Callable[..., AbstractContextManager[FluxBulkExecutor]]


def members(executor: FluxBulkExecutor) -> int:
    """Return how many blocks have joined."""
    report = executor.status_report()
    return int(report.instance.split()[0]) if report else 0


def wait_members(executor: FluxBulkExecutor, count: int) -> None:
    helpers.wait_until(lambda: members(executor) == count, BOUND, f"{count} block(s) have joined")


def alive(executor: FluxBulkExecutor) -> int:
    """Return how many blocks Parsl counts as pending or running."""
    states = [status.state for status in executor.status_facade.values()]
    return sum(state in (JobState.PENDING, JobState.RUNNING) for state in states)


def wait_alive(executor: FluxBulkExecutor, count: int) -> None:
    helpers.wait_until(lambda: alive(executor) == count, BOUND, f"{count} block(s) are alive")


def block_programs(directory: Path) -> list[psutil.Process]:
    """Return the program of each block whose files are below a directory."""
    return [
        psutil.Process(pid)
        for pid, command in helpers.own_processes().items()
        if str(directory) in command and "blocks/block_program.py" in " ".join(command.split()[:2])
    ]
