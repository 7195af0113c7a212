"""The errors of lost tasks name the cause, and what causes it."""

from __future__ import annotations

import signal

import pytest

from parsl_flux_bulk.executor.lost_worker_error import task_error
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.scheduler.task import CallTask, Function, Loss, LossReason

TASK: CallTask = CallTask(7, Resources(), lambda task: None, Function(1, "simulate", b""), b"")  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, "killed by SIGTERM (`flux cancel` and batch systems end jobs so)"),
        (signal.SIGKILL, "killed by SIGKILL (usually by the kernel, for lack of memory)"),
        (signal.SIGSEGV, "killed by SIGSEGV"),
    ],
)
def test_a_signal(number: int, words: str) -> None:
    error = task_error(TASK, Loss(LossReason.WORKER_LOST, signal=number, host="node7"), "/out")
    expected = f"simulate (task 7): its worker was lost while it ran, {words}, host node7, output in /out"
    assert str(error) == expected
