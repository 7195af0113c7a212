"""Measure the scheduler alone, with up to 64,000 simulated workers and a million tasks.

    python benchmarks/scheduler_scale.py [--nodes 1 10 100 1000] [--tasks N] [--seconds S] [--json FILE]

There are no processes: a simulation answers the scheduler's instructions, with a clock of its own that goes
on by the CPU time of the scheduler. The simulation hands over as much in a turn as the executor's completion
thread does. A turn is what that thread does between two looks at the instance: it hands over tasks and
events, and takes the instructions. All times are CPU times of the scheduler's calls.

A full collection visits every object of the process, most of them not the scheduler's, and stops all
threads. Its pause is therefore given apart from the longest turn; its cost is part of that of a task. Each
size has a process of its own.

The benchmark exits with status 1 if a target is missed: `LONGEST_TURN`, `TASK_COST` and `TASK_MEMORY`.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import os
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parsl_flux_bulk.executor.submission_queue import HAND_OVER_TIME
from parsl_flux_bulk.instances.base import Capacity
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.pipeline.completion import SLICE
from parsl_flux_bulk.scheduler.messages import (
    AssignTasks,
    CapacityChanged,
    PeerConnected,
    RecallTasks,
    ResolveTask,
    SubmitJob,
    TaskOutcome,
    TaskReturned,
)
from parsl_flux_bulk.scheduler.state_machine import Scheduler
from parsl_flux_bulk.scheduler.task import CallTask, Function

LONGEST_TURN = 0.050
"""CPU seconds of the longest turn, at most."""

TASK_COST = 12e-6
"""CPU seconds for each task, at most."""

TASK_MEMORY = 1000
"""Bytes for each pending task, at most."""

WORKERS_PER_NODE = 64
LATENCY = 0.0003
START_TIME = 0.1
"""Seconds of a message on its way, and from the submission of a job to the first message of its manager."""

SMALL = Resources(shape=Shape())


@dataclass
class Figures:
    """What one run measured; seconds are CPU seconds."""

    nodes: int
    workers: int
    tasks: int
    turns: int = 0
    microseconds_a_task: float = 0.0
    collector_us_a_task: float = 0.0
    longest_turn_ms: float = 0.0
    longest_collection_ms: float = 0.0
    bytes_a_task: float = 0.0
    tasks_a_second: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every target is reached."""
        return (
            self.longest_turn_ms <= 1000 * LONGEST_TURN
            and self.microseconds_a_task <= 1e6 * TASK_COST
            and self.bytes_a_task <= TASK_MEMORY
        )


class Run:
    """One scheduler with simulated workers, from the first task to the last outcome.

    Parameters
    ----------
    nodes, tasks : int
    seconds : float
        Seconds that a task takes, by the simulated clock.
    """

    def __init__(self, nodes: int, tasks: int, seconds: float) -> None:
        self.figures = Figures(nodes, nodes * WORKERS_PER_NODE, tasks)
        self._seconds = seconds
        self._scheduler = Scheduler(is_failure=lambda body: body.startswith(b"!"))
        self._scheduler.handle(CapacityChanged(Capacity(nodes, nodes * WORKERS_PER_NODE, 0)))
        # Ids of tasks, in arrays: the garbage collector does not visit those.
        self._queues: dict[tuple[int, int], array[int]] = {}
        self._ends: list[tuple[float, int, int]] = []
        self._events: list[tuple[float, int, Any]] = []
        self._order = 0
        self._now = 0.0
        self._cpu = 0.0
        self._ended = 0
        self._connected = 0
        self._collecting = self._collected = 0.0

    def measure(self) -> Figures:
        """Run to the end."""
        figures = self.figures
        before = resident()
        tasks = deque(self._make_tasks())
        gc.callbacks.append(self._on_collection)
        try:
            while tasks:
                self._turn(tasks, iter(()))
            figures.bytes_a_task = (resident() - before) / figures.tasks
            began = self._now
            while self._ended < figures.tasks:
                self._turn(tasks, self._due_events())
        finally:
            gc.callbacks.remove(self._on_collection)
        figures.microseconds_a_task = 1e6 * self._cpu / figures.tasks
        figures.tasks_a_second = figures.tasks / (self._now - began)
        return figures

    def _make_tasks(self) -> Iterator[CallTask]:
        function = Function(1, "nothing", b"")
        for task_id in range(1, self.figures.tasks + 1):
            yield CallTask(task_id, SMALL, lambda task: None, function, b"call of %d" % task_id)  # type: ignore[arg-type,return-value]

    # -- the completion thread ---------------------------------------------------------------------

    def _turn(self, tasks: deque[CallTask], events: Iterator[Any]) -> None:
        scheduler, clock = self._scheduler, time.thread_time
        took = self._collected = 0.0
        # As many events as the thread handles before its next turn.
        while took < SLICE and (some := list(islice(events, 32))):
            began = clock()
            for event in some:
                scheduler.handle(event)
            took += clock() - began
        handed = 0.0
        while tasks and handed < HAND_OVER_TIME:
            chunk = [tasks.popleft() for _ in range(min(1000, len(tasks)))]
            began = clock()
            scheduler.submit(chunk)
            handed += clock() - began
        took += handed
        began = clock()
        instructions = scheduler.take(self._now)
        deadline = scheduler.deadline()
        took += clock() - began
        collected, self._collected = self._collected, 0.0
        self._cpu += took
        self.figures.turns += 1
        self.figures.longest_turn_ms = max(self.figures.longest_turn_ms, 1000 * (took - collected))
        self.figures.collector_us_a_task += 1e6 * collected / self.figures.tasks
        self._now += took
        for instruction in instructions:
            self._obey(instruction)
        if not tasks:
            self._sleep(deadline)

    def _sleep(self, deadline: float | None) -> None:
        """Let the clock go on to the next event, or to what the scheduler waits for."""
        times = [queue[0][0] for queue in (self._events, self._ends) if queue]
        if deadline is not None:
            times.append(deadline)
        self._now = max(self._now, min(times))

    def _on_collection(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            took = time.thread_time() - self._collecting
            self._collected += took
            self.figures.longest_collection_ms = max(self.figures.longest_collection_ms, 1000 * took)

    # -- the simulated instance and its workers ----------------------------------------------------

    def _obey(self, instruction: Any) -> None:
        if isinstance(instruction, AssignTasks):
            peer, slot = int(instruction.peer), instruction.slot  # type: ignore[call-overload]
            queue = self._queues.get((peer, slot))
            if queue is None:
                queue = self._queues[peer, slot] = array("q")
            if not queue:
                heapq.heappush(self._ends, (self._now + 2 * LATENCY + self._seconds, peer, slot))
            queue.extend(task.task_id for task in instruction.tasks)
        elif isinstance(instruction, ResolveTask):
            self._ended += 1
        elif isinstance(instruction, SubmitJob):
            self._connected += 1
            job: Any = instruction.job
            name = f"node{self._connected}"
            event = PeerConnected(self._connected, job.token, job.slots, name)
            self._at(self._now + START_TIME, event)
        elif isinstance(instruction, RecallTasks):
            peer = int(instruction.peer)  # type: ignore[call-overload]
            queue = self._queues[peer, instruction.slot]
            while len(queue) > 1:
                self._at(self._now + LATENCY, TaskReturned(peer, instruction.slot, queue.pop()))

    def _at(self, when: float, event: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, event))

    def _due_events(self) -> Iterator[Any]:
        while self._events and self._events[0][0] <= self._now:
            yield heapq.heappop(self._events)[2]
        ends = self._ends
        while ends and ends[0][0] <= self._now:
            when, peer, slot = heapq.heappop(ends)
            queue = self._queues[peer, slot]
            task_id = queue.pop(0)
            if queue:
                heapq.heappush(ends, (when + self._seconds, peer, slot))
            yield TaskOutcome(peer, slot, task_id, b"")


def run(nodes: int, tasks: int, seconds: float) -> Figures:
    """Measure one size."""
    return Run(nodes, tasks, seconds).measure()


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--tasks", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument(
        "--seconds", type=float, default=0.01, help="simulated seconds of a task (default: 0.01)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    runs = []
    print("workers    tasks  us a task  longest turn ms  (collection)  bytes a task  turns")
    for nodes in arguments.nodes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            figures = process.submit(run, nodes, arguments.tasks, arguments.seconds).result()
        runs.append(figures)
        print(
            f"{figures.workers:7} {figures.tasks:8} {figures.microseconds_a_task:10.1f} "
            f"{figures.longest_turn_ms:16.1f} {figures.longest_collection_ms:13.1f} "
            f"{figures.bytes_a_task:13.0f} {figures.turns:6}{'' if figures.good else '  missed'}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figures) for figures in runs], indent=2) + "\n")
    return 0 if all(figures.good for figures in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
