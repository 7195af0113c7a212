"""The completion thread's loop: wait for any event of the instance, then act on all events at once.

The thread also serves the channel to the workers. All calls to job owners and to the runtime are made in this
thread, so neither needs a lock for its own state. The thread holds :attr:`Runtime.lock` unless it waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Generic, TypeAlias

from parsl_flux_bulk.instances.base import (
    Capacity,
    Completion,
    Event,
    JobEnded,
    JobId,
    JobResult,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
    Usage,
)
from parsl_flux_bulk.instances.call_queue import CallQueue
from parsl_flux_bulk.instances.events import SCOPE_BITS
from parsl_flux_bulk.pipeline.exit_status_to_error import canceled, refused
from parsl_flux_bulk.pipeline.job import JobState, JobT

SLICE = 0.005
"""Seconds for which events are handled before the runtime gets a turn."""


class Runtime:
    """What the completion thread serves besides jobs. This base class, for jobs alone, does nothing.

    A subclass is created in the completion thread once the instance is ready, and used there.

    Attributes
    ----------
    lock : threading.Lock
        Held by the completion thread unless it waits. Another thread that gets it without waiting may use the
        runtime.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def resized(self, capacity: Capacity) -> None:
        """Take note of the instance's new capacity."""

    def surveyed(
        self, usage: Usage, holding: list[Any], waiting: dict[Any, str], others: Collection[JobId]
    ) -> None:
        """Take note of what is free, which jobs hold resources, which wait and why, and others that wait."""

    def message(self, peer: PeerId, body: bytes) -> None:
        """Take a message from a peer."""

    def peer_lost(self, peer: PeerId) -> None:
        """Take note that a peer's connection closed."""

    def turn(self) -> None:
        """Act on everything that came in; called after each batch of events, and once after a loss."""

    def deadline(self) -> float | None:
        """Return when `turn` is due even without an event, in ``time.monotonic()`` seconds.

        Called just before the thread sleeps, when wake-ups are accepted already. What came in after `turn`,
        without a wake-up, must be answered with a time in the past.
        """
        return None

    def batching_delay(self, gil_wait: float) -> float:
        """Return for how many seconds the thread lets more work accumulate before it looks again.

        Parameters
        ----------
        gil_wait : float
            Seconds of the last loop iteration in which the thread was not running: other threads held the
            GIL, or other processes the core.
        """
        return 0.0


OpenRuntime: TypeAlias = Callable[[Completion, Capacity], Runtime]


class CompletionLoop(Generic[JobT]):
    """The state of the completion thread.

    Parameters
    ----------
    completion : Completion
    calls : CallQueue
        Calls from other threads.
    runtime : Runtime
    released : callable
        Called with the number of jobs that left the instance.
    resized : callable
        Called with the instance's new capacity.
    submitted : callable
        Called with each job that the instance accepted.
    ended : callable
        Called with each job and its result; exactly once for a job.
    """

    def __init__(
        self,
        completion: Completion,
        calls: CallQueue[CompletionLoop[JobT]],
        runtime: Runtime,
        *,
        released: Callable[[int], None],
        resized: Callable[[Capacity], None],
        submitted: Callable[[JobT], None],
        ended: Callable[[JobT, JobResult], None],
    ) -> None:
        self._completion = completion
        self._calls = calls
        self._runtime = runtime
        self._released = released
        self._resized = resized
        self._submitted = submitted
        self._ended = ended
        self._jobs: dict[JobId, JobT] = {}
        self._stopped = False

    def run(self) -> None:
        """Wait and act until stopped.

        Raises
        ------
        InstanceLost
        """
        woke, worked = time.monotonic(), time.thread_time()
        events: list[Event] = []
        while True:
            with self._runtime.lock:
                self._handle(events)
                self._calls.run(self)
                self._runtime.turn()
            if self._stopped:
                return
            gil_wait = (time.monotonic() - woke) - (time.thread_time() - worked)
            if delay := self._runtime.batching_delay(gil_wait):
                time.sleep(delay)
            events = self._calls.poll(self._completion, self._timeout)
            woke, worked = time.monotonic(), time.thread_time()

    def _handle(self, events: list[Event]) -> None:
        ended = 0
        due = time.monotonic() + SLICE
        for event in events:
            if isinstance(event, JobEnded):
                ended += 1
                self._end(self._jobs.pop(event.job_id), event.result)
            elif isinstance(event, PeerMessage):
                self._runtime.message(event.peer, event.body)
            elif isinstance(event, PeerLost):
                self._runtime.peer_lost(event.peer)
            elif isinstance(event, Usage):
                self._survey(event)
            else:
                self._resized(event.capacity)
                self._runtime.resized(event.capacity)
            if time.monotonic() > due:
                self._runtime.turn()
                due = time.monotonic() + SLICE
        if ended:
            self._released(ended)

    def _survey(self, usage: Usage) -> None:
        own = {job_id: job for job_id, job in self._jobs.items() if job_id >> SCOPE_BITS == usage.scope}
        waiting = {job: usage.waiting[job_id] for job_id, job in own.items() if job_id in usage.waiting}
        holding = [job for job_id, job in own.items() if job_id not in usage.waiting]
        self._runtime.surveyed(usage, holding, waiting, usage.waiting.keys() - own.keys())

    def _timeout(self) -> float | None:
        with self._runtime.lock:
            deadline = self._runtime.deadline()
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    # -- calls from other threads -------------------------------------------------------------------

    def stop(self) -> None:
        """End the loop."""
        self._stopped = True

    def take_answers(self, answers: list[tuple[JobT, JobId | Refusal]], submitted_at: float) -> None:
        """Watch the jobs of a batch that were accepted, and end those that were refused."""
        for job, answer in answers:
            if isinstance(answer, Refusal):
                self._end(job, refused(answer.reason))
            else:
                job.advance(JobState.SUBMITTED)
                job.t_submit = submitted_at
                self._jobs[answer] = job
                self._completion.watch(answer)
                self._submitted(job)

    def drop(self, job: JobT, reason: str) -> None:
        """End a job that was canceled before it was submitted."""
        self._end(job, canceled(reason))

    def _end(self, job: JobT, result: JobResult) -> None:
        if not job.ended:
            self._ended(job, result)
