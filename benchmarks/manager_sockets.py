"""Measure the executor's side of the channel with a thousand connected managers on this machine.

    python benchmarks/manager_sockets.py [--managers N] [--tasks N] [--calls N] [embedded] [flux]

The managers are sockets of one other process, each with 64 slots but without workers: a manager answers each
message at once with the outcomes of all its tasks. The executor's runtime and scheduler are the real ones.
Printed are the time until all managers are connected; tasks a second, many to a message, with the CPU
microseconds of the executor's thread for each; messages a second, both ways together, one small message in
flight for each manager; and the time from the submission of one task to its outcome, one task at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flux_instance import flux_instance, flux_missing

from parsl_flux_bulk.executor.job_factory import WorkerSettings
from parsl_flux_bulk.executor.runtime import TaskRuntime
from parsl_flux_bulk.executor.submission_queue import SubmissionQueue
from parsl_flux_bulk.instances.base import Capacity, Completion, Instance, PeerId, PeerMessage
from parsl_flux_bulk.instances.local.client import LocalInstance
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.protocol import frames, serialize
from parsl_flux_bulk.scheduler.model import WorkerJob
from parsl_flux_bulk.scheduler.task import CallTask, Function
from parsl_flux_bulk.worker.handshake import connect

SLOTS = 64
SMALL = Resources(shape=Shape())


# -- the process with the managers -----------------------------------------------------------------


def manage(managers: list[str]) -> None:
    """Connect all managers; answer until this process is killed."""
    selector = selectors.DefaultSelector()
    outcome = serialize.returned(None)
    for rank, (token, slots) in enumerate(map(int, each.split(":")) for each in managers):
        channel = connect(os.environ)
        hello = {"rank": 0, "size": 1, "host": f"node{rank}", "pid": os.getpid(), "node": f"node{rank}"}
        channel.send(frames.encode_json(frames.HELLO, slots, token, hello))
        selector.register(channel.fileno(), selectors.EVENT_READ, channel)
    while True:
        for key, _ in selector.select():
            for message in key.data.receive():
                answer = []
                for kind, slot, task_id, _ in frames.decode(message):
                    if kind == frames.TASK:
                        answer.append(frames.encode(frames.OUTCOME, slot, task_id, outcome))
                    elif kind == frames.RECALL:
                        answer.append(frames.encode(frames.RETURNED, slot, task_id))
                if answer:
                    key.data.send(b"".join(answer))


# -- the executor ----------------------------------------------------------------------------------


class NoInstance:
    """Takes the place of the pipeline: it keeps jobs, and starts none."""

    max_active_jobs = 32
    active_jobs = waiting_jobs = 0
    description = "no instance"

    def __init__(self) -> None:
        self.jobs: list[WorkerJob] = []

    @property
    def slots(self) -> int:
        return sum(job.slots for job in self.jobs)

    def submit(self, job: WorkerJob, *_: object) -> None:
        self.jobs.append(job)

    def cancel(self, *_: object) -> None:
        pass


class Counting:
    """A completion that counts messages."""

    def __init__(self, completion: Completion) -> None:
        self.messages = 0
        self.peers: dict[PeerId, None] = {}
        self._completion = completion

    def __getattr__(self, name: str) -> Any:
        return getattr(self._completion, name)

    def send(self, peer: PeerId, body: bytes) -> None:
        self.messages += 1
        self.peers[peer] = None
        self._completion.send(peer, body)


class Executor:
    """The loop of the completion thread, without a thread."""

    def __init__(self, instance: Instance, managers: int, directory: str) -> None:
        self.completion: Any = Counting(instance.completion())
        self.queue: Any = SubmissionQueue(lambda: None)
        self.pipeline: Any = NoInstance()
        settings = WorkerSettings(
            "scale", sys.executable, directory, directory, dict(os.environ), worker_idle_time=1e6
        )
        capacity = Capacity(managers, managers * SLOTS, 0)
        self.runtime = TaskRuntime(settings, self.pipeline, self.queue, self.completion, capacity)
        self._function = Function(1, "nothing", b"")
        self._call = serialize.dumps_call((), {})
        self._task_id = 0

    def managers(self) -> list[str]:
        """Return ``TOKEN:SLOTS`` for each manager to connect; a node that jobs share gets several."""
        return [f"{job.token}:{job.slots}" for job in self.pipeline.jobs]

    def submit(self) -> CallTask:
        self._task_id += 1
        task = CallTask(self._task_id, SMALL, self.queue.new_future, self._function, self._call)
        self.queue.put(task)
        return task

    def flood(self, count: int) -> float:
        """Send so many small messages, one in flight for each manager; return messages/s, both ways."""
        peers = itertools.cycle(self.completion.peers)
        message = frames.encode(frames.RECALL, 0, 1 << 40)  # of a task that no manager has
        began = time.perf_counter()
        self.completion.messages = sent = got = 0
        while got < count:
            while sent < count and sent - got < len(self.completion.peers):
                self.completion.send(next(peers), message)
                sent += 1
            for event in self.completion.poll(1.0):
                self.runtime.message(event.peer, event.body)
                got += 1
        return 2 * count / (time.perf_counter() - began)

    def run(self, until: Callable[[], bool]) -> None:
        """Serve the channel until a condition holds."""
        runtime = self.runtime
        while True:
            runtime.turn()
            if until():
                return
            deadline = runtime.deadline()
            timeout = 1.0 if deadline is None else min(1.0, max(0.0, deadline - time.monotonic()))
            for event in self.completion.poll(timeout):
                if isinstance(event, PeerMessage):
                    self.completion.messages += 1
                    runtime.message(event.peer, event.body)


def measure(instance: Instance, managers: int, tasks: int, calls: int) -> dict[str, float]:
    """Measure one kind of channel; return its figures by their names."""
    instance.start()
    with tempfile.TemporaryDirectory() as directory:
        executor = Executor(instance, managers, directory)
        first = [executor.submit() for _ in range(managers * SLOTS)]
        while executor.queue:  # all of it before the first decision
            executor.queue.hand_over(executor.queue.scheduler)
        executor.run(lambda: executor.pipeline.slots == managers * SLOTS)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, __file__, "--manage", *executor.managers()],
            env={**os.environ, **executor.completion.channel().environment},
        )
        figures: dict[str, float] = {}
        try:
            executor.run(lambda: executor.queue.workers == managers * SLOTS or process.poll() is not None)
            if process.poll() is not None:
                raise RuntimeError("the process with the managers ended")
            figures["connected s"] = time.perf_counter() - began
            executor.run(lambda: all(task.future.done() for task in first))

            executor.completion.messages, began, cpu = 0, time.perf_counter(), time.thread_time()
            last = [executor.submit() for _ in range(tasks)]
            ended = executor.queue.ended + tasks
            executor.run(lambda: executor.queue.ended == ended)
            assert all(task.future.done() for task in last)
            seconds = time.perf_counter() - began
            figures["tasks/s"] = tasks / seconds
            figures["tasks a message"] = 2 * tasks / executor.completion.messages
            figures["CPU us a task"] = 1e6 * (time.thread_time() - cpu) / tasks

            figures["messages/s"] = executor.flood(tasks)

            times = []
            for _ in range(calls):
                began = time.perf_counter()
                task = executor.submit()
                executor.run(task.future.done)
                times.append(1000 * (time.perf_counter() - began))
            figures["round trip ms"] = statistics.median(times)
            figures["slowest of 100 ms"] = statistics.quantiles(times, n=100)[-1]
        finally:
            process.kill()
            process.wait()
            executor.completion.close()
            instance.close()
    return figures


@contextlib.contextmanager
def embedded() -> Iterator[Instance]:
    """Yield the embedded instance."""
    yield LocalInstance()


@contextlib.contextmanager
def flux() -> Iterator[Instance]:
    """Yield a fresh Flux instance, to which the managers' process connects as well."""
    if missing := flux_missing():
        raise SystemExit(missing)
    from parsl_flux_bulk.instances.flux.instance import FluxInstance

    with flux_instance() as uri:
        os.environ["FLUX_URI"] = uri
        yield FluxInstance.attach(uri)


CHANNELS = {"embedded": embedded, "flux": flux}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("channels", nargs="*", help=f"of {' '.join(CHANNELS)} (default: all)")
    parser.add_argument("--managers", type=int, default=1000, help="default: 1000")
    parser.add_argument("--tasks", type=int, default=200_000, help="default: 200000")
    parser.add_argument("--calls", type=int, default=1000, help="tasks one at a time (default: 1000)")
    parser.add_argument("--manage", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.manage:
        manage(arguments.manage)
    for name in arguments.channels or CHANNELS:
        with CHANNELS[name]() as instance:
            figures = measure(instance, arguments.managers, arguments.tasks, arguments.calls)
        print(name + ":", ", ".join(f"{what} {value:.4g}" for what, value in figures.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
