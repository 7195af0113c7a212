"""The agent asks for a turn whenever something waits for it, however it came in."""

from __future__ import annotations

import itertools
import time
from collections import deque

import pytest

from parsl_flux_bulk.agent import GATHER_BELOW, GATHER_TIME, TaskAgent, TaskFuture
from parsl_flux_bulk.calls import FunctionTable, serialise_call
from parsl_flux_bulk.dispatch.task import Task
from parsl_flux_bulk.errors import ExecutorClosed
from parsl_flux_bulk.instances.base import Capacity, ChannelAddress
from parsl_flux_bulk.jobbuilder import WorkerSettings
from parsl_flux_bulk.jobspec.resources import Resources


class SilentPipeline:
    """A pipeline whose completion thread is awake, so that nobody is woken."""

    max_active_jobs = 1
    description = "none"
    active_jobs = waiting_jobs = 0

    def __init__(self):
        self.jobs = []

    def wake(self):
        pass

    def submit(self, job):
        self.jobs.append(job)

    def cancel(self, job, reason):
        self.jobs.remove(job)


@pytest.fixture
def agent(tmp_path):
    here = str(tmp_path)
    settings = WorkerSettings(label="a", python="python", output=here, cwd=here, environment={})
    agent = TaskAgent(settings)
    agent.bind(SilentPipeline())
    agent.opened(Capacity(nodes=1, cores=1, gpus=0), ChannelAddress(), lambda peer, body: None)
    return agent


def make_task(agent, ids=itertools.count(1)):  # noqa: B008
    task_id = next(ids)
    future = TaskFuture(agent, task_id)
    function = FunctionTable().get(len)
    call = serialise_call("len", ("abc",), {})
    task = Task(task_id, Resources.from_specification({}), function, call, future)
    future.bind(task)
    return task


def wants_a_turn(agent):
    deadline = agent.deadline()
    return deadline is not None and deadline <= time.monotonic()


def test_a_task_that_came_in_while_the_thread_was_awake_gets_a_turn(agent):
    agent.turn()
    assert not wants_a_turn(agent)
    agent.put(make_task(agent))
    assert wants_a_turn(agent)
    agent.turn()
    assert not wants_a_turn(agent)


def test_a_cancel_that_came_in_while_the_thread_was_awake_gets_a_turn(agent):
    task = make_task(agent)
    agent.put(task)
    agent.turn()
    assert not wants_a_turn(agent)
    assert task.future.cancel()
    assert wants_a_turn(agent)
    agent.turn()
    assert not wants_a_turn(agent)


# -- gathering while others hold the interpreter -------------------------------------------------------

CONTENDED = 0.001


def submit(agent, count):
    for _ in range(count):
        agent.put(make_task(agent))
    agent.turn()


def test_more_is_let_gather_where_turns_are_dear_and_small(agent):
    submit(agent, 3)
    assert agent.patience(CONTENDED) == GATHER_TIME
    agent.close()


def test_nothing_gathers_where_nobody_else_wants_the_interpreter(agent):
    submit(agent, 3)
    assert agent.patience(0.0) == 0
    agent.close()


def test_a_chain_of_tasks_is_not_kept_waiting(agent):
    submit(agent, 1)
    assert agent.patience(CONTENDED) == 0
    agent.close()


def test_a_flood_is_told_by_what_was_done_though_all_of_it_has_ended(agent):
    submit(agent, 3)
    agent.close()  # as if they had: each is handled once more
    assert agent.patience(CONTENDED) == GATHER_TIME


def test_a_turn_that_did_much_was_worth_its_price(agent):
    submit(agent, GATHER_BELOW)
    assert agent.patience(CONTENDED) == 0
    agent.turn()  # the next one did nothing
    assert agent.patience(CONTENDED) == GATHER_TIME
    agent.close()


def test_workers_of_long_tasks_are_not_kept_waiting(agent):
    submit(agent, 3)
    (crew,) = agent._dispatcher._fleet.crews.values()
    crew.pace.observe(1, 2 * GATHER_TIME, 1)
    assert agent.patience(CONTENDED) == 0
    agent.close()


class CancelsThatComeLate(deque):
    """As when another thread submits a task and cancels it just before this thread looks at cancels."""

    def __init__(self, meanwhile):
        super().__init__()
        self.meanwhile = [meanwhile]

    def __len__(self):
        if self.meanwhile:
            self.meanwhile.pop()()
        return super().__len__()


def test_a_task_cancelled_before_the_dispatcher_knew_it_takes_no_other_with_it(agent):
    first, second, third = make_task(agent), make_task(agent), make_task(agent)

    def submit_and_cancel():
        agent.put(second)
        assert second.future.cancel()

    agent._cancels = CancelsThatComeLate(submit_and_cancel)
    agent.put(first)
    agent.turn()
    agent.put(third)
    agent.turn()
    assert agent.status().tasks.pending == 2
    agent.close()
    assert isinstance(first.future.exception(timeout=0), ExecutorClosed)
    assert isinstance(third.future.exception(timeout=0), ExecutorClosed)
