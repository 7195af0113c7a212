"""The runtime asks for a turn whenever something waits for it, and batches only where that pays."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from concurrent.futures import Future

import pytest
from helpers import wait_until

from parsl_flux_bulk.errors import ExecutorClosed, InstanceLost
from parsl_flux_bulk.executor import submission_queue
from parsl_flux_bulk.executor.job_factory import WorkerSettings
from parsl_flux_bulk.executor.runtime import (
    BATCHING_DELAY,
    LARGE_BATCH,
    StatusReport,
    TaskRuntime,
)
from parsl_flux_bulk.executor.serialize_calls import FunctionTable, serialize_call
from parsl_flux_bulk.executor.submission_queue import SubmissionQueue, TaskFuture
from parsl_flux_bulk.instances.base import Capacity, ChannelAddress
from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.scheduler.task import CallTask

WAIT = 0.001
"""GIL wait (s) at which batching pays."""


class FakePipeline:
    """Keeps the jobs that are submitted."""

    max_active_jobs = 1
    description = "none"
    active_jobs = waiting_jobs = 0

    def __init__(self):
        self.jobs = []

    def submit(self, job, request, owner):
        self.jobs.append(job)

    def cancel(self, job, reason):
        self.jobs.remove(job)


class FakeCompletion:
    """Keeps what is sent to peers."""

    def __init__(self):
        self.sent = []
        self.packets = []
        self.any_thread = True
        self.has_lane = False

    def channel(self):
        return ChannelAddress()

    def survey(self):
        pass

    def send(self, peer, body):
        self.sent.append((peer, body))

    def send_from_any_thread(self, peer, body, slot=None):
        if slot is None:
            if self.any_thread:
                self.sent.append((peer, body))
            return self.any_thread
        if self.has_lane:
            self.packets.append((peer, slot, body))
        return self.has_lane


class Bench:
    """A runtime, with what is around it."""

    def __init__(self, directory):
        self.now = time.monotonic()
        settings = WorkerSettings(label="a", python="python", output=directory, cwd=directory, environment={})
        self.pipeline = FakePipeline()
        # The completion thread is awake, so a wake-up does nothing.
        self.queue = SubmissionQueue(self.note_wake)
        self.wakes = 0
        self.completion = FakeCompletion()
        self.runtime = TaskRuntime(
            settings, self.pipeline, self.queue, self.completion, Capacity(nodes=1, cores=1, gpus=0)
        )
        self.ids = itertools.count(1)
        self.functions = FunctionTable()

    def note_wake(self):
        self.wakes += 1

    def start_worker(self):
        """Have a worker run one task, and wait for the next."""
        (task,) = self.submit(1)
        for _ in range(1000):
            if self.pipeline.jobs:
                break
            self.now += 0.01
            self.runtime.turn()
        (job,) = self.pipeline.jobs
        about = {"rank": 0, "size": 1, "host": "here", "pid": 1, "node": None, "python": "3", "block": ""}
        self.runtime.message("manager", frames.encode_json(frames.HELLO, 1, job.token, about))
        self.runtime.turn()
        self.end(task)

    def end(self, task, awaited=True):
        thread = threading.Thread(target=task.future.result, args=[10])
        if awaited:
            thread.start()
            wait_until(lambda: task.future.is_awaited)
        self.runtime.message(
            "manager", frames.encode_outcome(0, task.task_id, 1.0, 2.0, serialize.returned(3))
        )
        self.runtime.turn()
        assert task.future.result(timeout=0) == 3
        if awaited:
            thread.join()
        self.runtime.deadline()  # the thread goes to sleep
        self.wakes = 0
        self.completion.sent.clear()

    def tasks_sent(self):
        frames_sent = [f for _, body in self.completion.sent for f in frames.decode(body)]
        return [id for kind, _, id, _ in frames_sent if kind == frames.TASK]

    def sent_to_the_worker(self):
        """The ids of the tasks that went past the manager."""
        return [id for _, _, packet in self.completion.packets for _, _, id, _ in frames.decode(packet)]

    def make_task(self, new_future=None, *, call=None, function=len):
        function = self.functions.get(function)
        call = call or serialize_call("len", ("abc",), {})
        new_future = new_future or functools.partial(TaskFuture, self.queue)
        return CallTask(next(self.ids), Resources.from_specification({}), new_future, function, call)

    def put(self, **options):
        task = self.make_task(**options)
        self.queue.put(task)
        return task

    def submit(self, count):
        tasks = [self.put() for _ in range(count)]
        self.runtime.turn()
        return tasks

    def wants_a_turn(self):
        deadline = self.runtime.deadline()
        return deadline is not None and deadline <= time.monotonic()

    def status(self):
        return StatusReport.of(self.queue.scheduler, self.pipeline).tasks

    def shut_down(self):
        self.queue.fail(ExecutorClosed("over"))
        self.runtime.turn()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    bench = Bench(str(tmp_path))
    # Time stands still but where a test moves it: timers do not run out between two lines of a test.
    monkeypatch.setattr(time, "monotonic", lambda: bench.now)
    return bench


def test_a_task_that_came_in_while_the_thread_was_awake_gets_a_turn(bench):
    bench.runtime.turn()
    assert not bench.wants_a_turn()
    bench.put()
    assert bench.wants_a_turn()
    bench.runtime.turn()
    assert not bench.wants_a_turn()


def test_a_cancellation_that_came_in_while_the_thread_was_awake_gets_a_turn(bench):
    (task,) = bench.submit(1)
    assert not bench.wants_a_turn()
    assert task.future.cancel()
    assert bench.wants_a_turn()
    bench.runtime.turn()
    assert not bench.wants_a_turn()
    assert bench.queue.outstanding == 0


class SlowScheduler:
    """While it takes tasks, another thread submits one more and cancels it."""

    def __init__(self, meanwhile):
        self.meanwhile = meanwhile
        self.known = []
        self.canceled = []

    def submit(self, tasks):
        self.known += tasks
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()

    def cancel(self, task):
        assert task in self.known
        self.canceled.append(task)


def test_the_scheduler_knows_a_task_before_it_is_canceled(bench):
    scheduler = SlowScheduler(lambda: bench.put().future.cancel())
    first = bench.put()
    bench.queue.hand_over(scheduler)
    assert (scheduler.known, scheduler.canceled) == ([first], [])
    bench.queue.hand_over(scheduler)
    assert scheduler.canceled == scheduler.known[1:] != []


def test_a_flood_is_handed_over_in_parts_so_that_outcomes_are_not_kept_waiting(bench, monkeypatch):
    monkeypatch.setattr(submission_queue, "HAND_OVER_TIME", -1.0)
    scheduler = SlowScheduler(None)
    tasks = [bench.put() for _ in range(2500)]
    # One part goes even if no time is left.
    parts = []
    while bench.queue:
        assert bench.wants_a_turn()
        bench.queue.hand_over(scheduler)
        parts.append(len(scheduler.known) - sum(parts))
    assert parts == [1000, 1000, 500]
    assert scheduler.known == tasks


def test_a_request_is_not_overtaken_by_the_tasks_before_it(bench, monkeypatch):
    monkeypatch.setattr(submission_queue, "HAND_OVER_TIME", -1.0)
    scheduler = SlowScheduler(None)
    tasks = [bench.put() for _ in range(2500)]
    tasks[-1].future.cancel()
    bench.queue.hand_over(scheduler)
    assert (scheduler.known, scheduler.canceled) == (tasks, [tasks[-1]])


# -- failing -------------------------------------------------------------------------------------------


def test_tasks_that_the_scheduler_has_and_tasks_that_wait_fail_with_copies_of_the_error(bench):
    (taken,) = bench.submit(1)
    waiting = bench.put()
    error = InstanceLost("it is lost")
    bench.queue.fail(error)
    bench.runtime.turn()
    errors = [error, taken.future.exception(timeout=0), waiting.future.exception(timeout=0)]
    assert [repr(each) for each in errors] == [repr(error)] * 3
    assert len(set(map(id, errors))) == 3
    assert bench.queue.outstanding == 0


def test_a_task_that_is_put_after_a_failure_is_rejected_with_a_copy_of_the_error(bench):
    error = InstanceLost("it is lost")
    bench.queue.fail(error)
    bench.queue.fail(ExecutorClosed("later"))
    with pytest.raises(InstanceLost, match="it is lost") as raised:
        bench.put()
    assert raised.value is not error
    assert error.__traceback__ is None


def test_a_task_that_is_put_while_the_queue_fails_ends(bench):
    error = InstanceLost("it is lost")

    def fail_meanwhile():
        queue.error = error

    queue = SubmissionQueue(fail_meanwhile)
    task = bench.make_task(lambda task: Future())
    queue.put(task)
    assert repr(task.future.exception(timeout=0)) == repr(error)


# -- a lone task is sent by the thread that submits it ------------------------------------------------


def test_a_lone_task_is_sent_at_once_and_wakes_no_thread(bench):
    bench.start_worker()
    for _ in range(2):
        task = bench.put()
        assert bench.tasks_sent() == [task.task_id]
        assert bench.wakes == 0
        assert not bench.wants_a_turn()
        bench.end(task)
    bench.shut_down()


def test_further_tasks_are_left_to_the_completion_thread(bench):
    bench.start_worker()
    first = bench.put()
    bench.put()
    assert bench.tasks_sent() == [first.task_id]
    assert bench.wakes == 1
    assert bench.wants_a_turn()
    bench.shut_down()


def test_a_lone_task_is_left_to_the_completion_thread_while_that_is_awake(bench):
    bench.start_worker()
    with bench.runtime.lock:
        task = bench.put()
    assert (bench.tasks_sent(), bench.wakes) == ([], 1)
    bench.runtime.turn()
    assert bench.tasks_sent() == [task.task_id]
    bench.shut_down()


def test_a_lone_task_is_left_to_the_completion_thread_where_no_thread_waits_for_results(bench):
    bench.start_worker()
    bench.end(bench.put(), awaited=False)
    bench.put()
    assert (bench.tasks_sent(), bench.wakes) == ([], 1)
    bench.shut_down()


def test_what_only_the_completion_thread_can_send_is_left_to_it(bench):
    bench.start_worker()
    bench.completion.any_thread = False
    task = bench.put()
    assert (bench.tasks_sent(), bench.wakes) == ([], 1)
    assert bench.wants_a_turn()
    bench.runtime.turn()
    assert bench.tasks_sent() == [task.task_id]
    bench.shut_down()


def test_a_lone_task_goes_past_the_manager_to_a_worker_that_has_its_function(bench):
    bench.start_worker()
    bench.completion.has_lane = True
    first = bench.put()
    assert (bench.tasks_sent(), bench.sent_to_the_worker()) == ([first.task_id], [])
    bench.end(first)
    second = bench.put()
    assert (bench.tasks_sent(), bench.sent_to_the_worker()) == ([], [second.task_id])
    (sent,) = bench.completion.packets
    expected = frames.encode_task(0, second.task_id, second.function.function_id, second.call, frames.LONE)
    assert sent == ("manager", 0, expected)
    bench.end(second)
    other = bench.put(function=abs)
    assert (bench.tasks_sent(), bench.sent_to_the_worker()) == ([other.task_id], [second.task_id])
    bench.shut_down()


@pytest.mark.parametrize(
    "call", [b"R" + bytes(frames.LANE_LIMIT), serialize.with_walltime(60.0, b"R")], ids=["large", "walltime"]
)
def test_a_task_that_the_manager_has_to_see_does_not_go_past_it(bench, call):
    bench.start_worker()
    bench.completion.has_lane = True
    bench.end(bench.put())
    task = bench.put(call=call)
    assert (bench.tasks_sent(), bench.sent_to_the_worker()) == ([task.task_id], [])
    bench.shut_down()


def test_a_task_whose_worker_has_no_lane_goes_to_the_manager(bench):
    bench.start_worker()
    for _ in range(2):
        task = bench.put()
        assert bench.tasks_sent() == [task.task_id]
        bench.end(task)
    bench.shut_down()


# -- batching while other threads hold the GIL ---------------------------------------------------------


def test_events_are_batched_where_iterations_are_expensive_and_small(bench):
    bench.submit(3)
    assert bench.runtime.batching_delay(WAIT) == BATCHING_DELAY
    bench.shut_down()


def test_nothing_is_batched_where_no_other_thread_wants_the_gil(bench):
    bench.submit(3)
    assert bench.runtime.batching_delay(0.0) == 0
    bench.shut_down()


def test_a_chain_of_tasks_is_not_delayed(bench):
    bench.submit(1)
    assert bench.runtime.batching_delay(WAIT) == 0
    bench.shut_down()


def test_many_short_tasks_are_batched_even_if_all_of_them_have_ended(bench):
    bench.submit(3)
    bench.shut_down()  # each task is handled once more
    assert bench.runtime.batching_delay(WAIT) == BATCHING_DELAY


def test_an_iteration_that_did_much_is_not_followed_by_a_delay(bench):
    bench.submit(LARGE_BATCH)
    assert bench.runtime.batching_delay(WAIT) == 0
    bench.runtime.turn()  # did nothing
    assert bench.runtime.batching_delay(WAIT) == BATCHING_DELAY
    bench.shut_down()


def test_workers_of_long_tasks_are_not_kept_waiting(bench, monkeypatch):
    first, *_ = bench.submit(3)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.0)
    bench.runtime.turn()  # the job is submitted once more tasks could have come
    (job,) = bench.pipeline.jobs
    bench.runtime.message("peer", frames.encode_json(frames.HELLO, 1, job.token, {"host": "node1"}))
    bench.runtime.turn()
    result = serialize.run(len, first.call)
    now += 1.0 + 2 * BATCHING_DELAY
    bench.runtime.message("peer", frames.encode_outcome(0, first.task_id, 1.0, 2.0, result))
    bench.runtime.turn()
    assert first.future.result(timeout=0) == 3
    assert bench.queue.scheduler.service_time >= BATCHING_DELAY
    bench.runtime.batching_delay(WAIT)
    bench.submit(3)
    assert bench.runtime.batching_delay(WAIT) == 0
    bench.shut_down()


def test_a_future_tells_the_story_of_its_task(bench):
    (task,) = bench.submit(1)
    *_, now = task.future.story()
    assert (now.event, list(now.tasks)) == ("now", [task.task_id])
    assert now.cause.startswith("one of 1 tasks that wait for a worker: 0 are busy")
    bench.shut_down()
    assert task.future.story()[-1].cause == "the executor was shut down"


def test_a_task_that_waits_for_the_instance_says_so():
    queue = SubmissionQueue(lambda: None)
    function, call = FunctionTable().get(len), serialize_call("len", ("abc",), {})
    new_future = functools.partial(TaskFuture, queue)
    task = CallTask(1, Resources.from_specification({}), new_future, function, call)
    queue.put(task)
    (record,) = task.future.story()
    assert (record.event, record.cause) == ("now", "the instance is not ready")
