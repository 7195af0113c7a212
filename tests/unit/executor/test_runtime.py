"""The runtime asks for a turn whenever something waits for it, however it came in."""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque

import pytest

from parsl_flux_bulk.errors import ExecutorClosed
from parsl_flux_bulk.executor.calls import FunctionTable, serialize_call
from parsl_flux_bulk.executor.job_factory import WorkerSettings
from parsl_flux_bulk.executor.runtime import GATHER_BELOW, GATHER_TIME, TaskFuture, TaskRuntime
from parsl_flux_bulk.instances.base import Capacity, ChannelAddress
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.scheduler.task import CallTask


class SilentPipeline:
    """A pipeline whose completion thread is awake, so that nobody is woken."""

    max_active_jobs = 1
    description = "none"
    active_jobs = waiting_jobs = 0

    def __init__(self):
        self.jobs = []

    def wake(self):
        pass

    def submit(self, job, request):
        self.jobs.append(job)

    def cancel(self, job, reason):
        self.jobs.remove(job)


@pytest.fixture
def runtime(tmp_path):
    here = str(tmp_path)
    settings = WorkerSettings(label="a", python="python", output=here, cwd=here, environment={})
    runtime = TaskRuntime(settings)
    runtime.bind(SilentPipeline())
    runtime.opened(Capacity(nodes=1, cores=1, gpus=0), ChannelAddress(), lambda peer, body: None)
    return runtime


def make_task(runtime, ids=itertools.count(1)):  # noqa: B008
    task_id = next(ids)
    function = FunctionTable().get(len)
    call = serialize_call("len", ("abc",), {})
    new_future = functools.partial(TaskFuture, runtime)
    return CallTask(task_id, Resources.from_specification({}), new_future, function, call)


def wants_a_turn(runtime):
    deadline = runtime.deadline()
    return deadline is not None and deadline <= time.monotonic()


def test_a_task_that_came_in_while_the_thread_was_awake_gets_a_turn(runtime):
    runtime.turn()
    assert not wants_a_turn(runtime)
    runtime.put(make_task(runtime))
    assert wants_a_turn(runtime)
    runtime.turn()
    assert not wants_a_turn(runtime)


def test_a_cancel_that_came_in_while_the_thread_was_awake_gets_a_turn(runtime):
    task = make_task(runtime)
    runtime.put(task)
    runtime.turn()
    assert not wants_a_turn(runtime)
    assert task.future.cancel()
    assert wants_a_turn(runtime)
    runtime.turn()
    assert not wants_a_turn(runtime)


# -- gathering while others hold the interpreter -------------------------------------------------------

CONTENDED = 0.001


def submit(runtime, count):
    for _ in range(count):
        runtime.put(make_task(runtime))
    runtime.turn()


def test_more_is_let_gather_where_turns_are_dear_and_small(runtime):
    submit(runtime, 3)
    assert runtime.patience(CONTENDED) == GATHER_TIME
    runtime.close()


def test_nothing_gathers_where_nobody_else_wants_the_interpreter(runtime):
    submit(runtime, 3)
    assert runtime.patience(0.0) == 0
    runtime.close()


def test_a_chain_of_tasks_is_not_kept_waiting(runtime):
    submit(runtime, 1)
    assert runtime.patience(CONTENDED) == 0
    runtime.close()


def test_a_flood_is_told_by_what_was_done_though_all_of_it_has_ended(runtime):
    submit(runtime, 3)
    runtime.close()  # as if they had: each is handled once more
    assert runtime.patience(CONTENDED) == GATHER_TIME


def test_a_turn_that_did_much_was_worth_its_price(runtime):
    submit(runtime, GATHER_BELOW)
    assert runtime.patience(CONTENDED) == 0
    runtime.turn()  # the next one did nothing
    assert runtime.patience(CONTENDED) == GATHER_TIME
    runtime.close()


def test_workers_of_long_tasks_are_not_kept_waiting(runtime):
    submit(runtime, 3)
    (group,) = runtime._scheduler.lifecycle.groups.values()
    group.service_time.observe(1, 2 * GATHER_TIME, 1)
    assert runtime.patience(CONTENDED) == 0
    runtime.close()


class CancelsThatComeLate(deque):
    """As when another thread submits a task and cancels it just before this thread looks at cancels."""

    def __init__(self, meanwhile):
        super().__init__()
        self.meanwhile = [meanwhile]

    def __len__(self):
        if self.meanwhile:
            self.meanwhile.pop()()
        return super().__len__()


def test_a_task_cancelled_before_the_dispatcher_knew_it_takes_no_other_with_it(runtime):
    first, second, third = make_task(runtime), make_task(runtime), make_task(runtime)

    def submit_and_cancel():
        runtime.put(second)
        assert second.future.cancel()

    runtime._cancels = CancelsThatComeLate(submit_and_cancel)
    runtime.put(first)
    runtime.turn()
    runtime.put(third)
    runtime.turn()
    assert runtime.status().tasks.pending == 2
    runtime.close()
    assert isinstance(first.future.exception(timeout=0), ExecutorClosed)
    assert isinstance(third.future.exception(timeout=0), ExecutorClosed)
