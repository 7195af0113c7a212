"""The queue of a worker group."""

from __future__ import annotations

from world import make_task

from parsl_flux_bulk.jobspec.resources import Resources
from parsl_flux_bulk.scheduler.states import TaskState
from parsl_flux_bulk.scheduler.task_queue import TaskQueue


def test_its_tasks_are_listed_in_the_order_in_which_they_leave() -> None:
    queue = TaskQueue()
    new, urgent, returned, canceled = [
        make_task(number, Resources.from_specification({"priority": 1} if number == 2 else {}), None)
        for number in range(1, 5)
    ]
    for task in (new, urgent, canceled):
        queue.push(task)
    queue.push_back(returned)
    canceled.move_to(TaskState.DONE)
    queue.discard()
    assert queue.tasks() == [urgent, returned, new]
    assert list(queue.drain()) == [urgent, returned, new]
