"""How blocks end: before they join, with the executor, and when its host dies or falls silent."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import apps
import helpers
import psutil
import pytest
from block_executors import (
    BOUND,
    KINDS,
    Local,
    Running,
    alive,
    block_programs,
    new_executor,
    wait_members,
)
from parsl.executors.errors import BadStateException
from parsl.jobs.states import JobState

from parsl_flux_bulk.errors import InstanceUnavailable

# -- blocks that do not become ready ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"worker_init": "echo no such module >&2; exit 7"}, "EXIT CODE: 7.*no such module"),
        ({"node_init": "echo no daemon >&2; false"}, "no daemon.*node_init exited with status 1"),
        ({"worker_init": "exit 0"}, "ended before it joined"),
    ],
)
def test_tasks_fail_with_the_log_of_blocks_that_never_come_up(
    running: Running, options: dict[str, str], says: str
) -> None:
    provider = Local(init_blocks=1, max_blocks=1, worker_init=options.get("worker_init", ""))
    executor = new_executor("local", provider, node_init=options.get("node_init", ""))
    with running(executor, strategy="simple"):
        first = executor.submit(apps.double, {}, 1)
        error = first.exception(timeout=BOUND)
        assert isinstance(error, BadStateException)
        assert re.search(says, str(error), re.DOTALL), str(error)
        with pytest.raises(BadStateException, match=re.compile(says, re.DOTALL)):
            executor.submit(apps.double, {}, 1).result(timeout=BOUND)


def test_what_is_done_about_failed_blocks_can_be_chosen(running: Running) -> None:
    seen: list[set[JobState]] = []
    executor = new_executor(
        "local",
        Local(init_blocks=1, max_blocks=1, worker_init="exit 1"),
        block_error_handler=lambda _, status: seen.append({s.state for s in status.values()}),
    )
    with running(executor):
        helpers.wait_until(lambda: {JobState.FAILED} in seen, BOUND, "the handler is called")
        assert not executor.bad_state_is_set


def test_blocks_that_fail_after_one_that_worked_are_noticed(running: Running, tmp_path: Path) -> None:
    once = tmp_path / "once"
    # No block from the start: the strategy could find it idle, and end it, before a task is submitted.
    provider = Local(
        init_blocks=0, min_blocks=0, max_blocks=1, worker_init=f"[ -e {once} ] && exit 7; touch {once}"
    )
    with running(new_executor("local", provider), strategy="simple", max_idletime=0.5) as executor:
        assert executor.submit(apps.double, {}, 1).result(timeout=BOUND) == 2
        helpers.wait_until(lambda: alive(executor) == 0, BOUND, "the block is scaled in")
        wait_members(executor, 0)
        error = executor.submit(apps.double, {}, 1).exception(timeout=BOUND)
        assert isinstance(error, BadStateException)
        assert "EXIT CODE: 7" in str(error)


def test_a_configuration_can_be_loaded_again_after_its_blocks_failed(
    running: Running, tmp_path: Path
) -> None:
    fixed = tmp_path / "fixed"
    executor = new_executor(
        "local", Local(init_blocks=1, max_blocks=1, worker_init=f"[ -e {fixed} ] || exit 7")
    )
    with running(executor, strategy="simple"):
        assert isinstance(executor.submit(apps.double, {}, 1).exception(timeout=BOUND), BadStateException)
    fixed.touch()
    with running(executor, strategy="simple"):
        assert executor.submit(apps.double, {}, 1).result(timeout=BOUND) == 2
        assert not executor.bad_state_is_set


def test_a_configuration_can_be_loaded_again_after_a_start_that_failed(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_port(*_: Any, **__: Any) -> None:
        raise InstanceUnavailable("cannot listen for blocks")

    executor = new_executor("local", Local(init_blocks=1, max_blocks=1))
    with monkeypatch.context() as patched:
        patched.setattr("parsl_flux_bulk.blocks.manager.RelayServer", no_port)
        executor.run_dir = str(tmp_path)  # Parsl itself leaves a thread behind when a load fails
        with pytest.raises(InstanceUnavailable):
            executor.start()
    with running(executor):
        assert executor.submit(apps.double, {}, 1).result(timeout=BOUND) == 2
        assert len(executor.blocks_to_job_id) == 1


# -- the end ---------------------------------------------------------------------------------------------

SCRIPT = """
import sys, apps, parsl
from parsl.config import Config
from parsl.providers import LocalProvider
from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.executor import block_scaling
from parsl_flux_bulk.blocks.manager import BlockSettings
from functools import partial
if {timeout}:
    block_scaling.BlockSettings = partial(BlockSettings, unreachable_timeout={timeout})
executor = FluxBulkExecutor(
    instance={instance!r}, provider=LocalProvider(init_blocks=2, max_blocks=2), block_error_handler=False
)
parsl.load(Config(executors=[executor], strategy="none", run_dir="runinfo"))
sleep = parsl.python_app(apps.mark)
tasks = [sleep("marks", 600) for _ in range(100)]
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_no_block_outlives_the_executors_host(kind: str, how: signal.Signals, tmp_path: Path) -> None:
    """A killed script's connections end; those of a host that lost its power, or network, fall silent."""
    silent = how is signal.SIGSTOP
    source = SCRIPT.format(instance="local" if kind == "local" else None, timeout=4 if silent else 0)
    marks = tmp_path / "marks"
    with helpers.script(source, tmp_path) as process:
        both = 2 * len(os.sched_getaffinity(0))
        helpers.wait_lines(marks, both, BOUND, "both blocks work")
        blocks = set(helpers.own_processes()) - {process.pid} - script_helpers(process.pid)
        assert len(block_programs(tmp_path)) == 2
        process.send_signal(how)
        helpers.wait_gone(blocks, BOUND)
    helpers.wait_gone(set(helpers.own_processes()))


def script_helpers(pid: int) -> set[int]:
    """Processes of the script that are no block's, such as Parsl's."""
    return {
        child.pid
        for child in psutil.Process(pid).children(recursive=True)
        if "parsl" in child.name() or "multiprocessing" in helpers.command_of(child.pid)
    }


def test_what_could_not_be_cancelled_is_named(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Local(init_blocks=1, max_blocks=1)
    cancel = provider.cancel
    with running(new_executor("local", provider)) as executor:
        assert executor.submit(apps.double, {}, 1).result(timeout=BOUND) == 2
        monkeypatch.setattr(provider, "cancel", lambda jobs: [not done for done in cancel(jobs)])
        (job,) = executor.blocks_to_job_id.values()
    assert f"cancel refused by the provider executor=blocks jobs=['{job}']" in caplog.text
