"""The wait-any completion thread, which also serves the workers' channel.

It sleeps in the instance until one of *our* jobs ends, a worker sends something, or another thread
wakes it; then it acts on everything that is there. All callbacks to listeners and to the runtime
happen here, so neither needs a lock of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol

from parsl_flux_bulk.errors import InstanceLost
from parsl_flux_bulk.instances.base import (
    Capacity,
    ChannelAddress,
    Completion,
    JobEnded,
    JobId,
    JobResult,
    PeerId,
    PeerLost,
    PeerMessage,
    Refusal,
)
from parsl_flux_bulk.pipeline.job import JobState, JobT
from parsl_flux_bulk.pipeline.job_errors import canceled, refused

logger = logging.getLogger(__name__)


class Runtime(Protocol):
    """What the executor does inside the completion thread."""

    def opened(
        self, capacity: Capacity, channel: ChannelAddress, send: Callable[[PeerId, bytes], None]
    ) -> None:
        """Everything is up; called first, once."""

    def resized(self, capacity: Capacity) -> None:
        """The instance has more or less than before."""

    def message(self, peer: PeerId, body: bytes) -> None:
        """A worker sent something."""

    def peer_lost(self, peer: PeerId) -> None:
        """A worker's connection closed."""

    def turn(self) -> None:
        """Act on what has come in; called after every batch of events."""

    def deadline(self) -> float | None:
        """When `turn` is wanted even if nothing happens, in ``time.monotonic()`` seconds.

        Asked just before the thread sleeps, with wake-ups working again: what `turn` has not seen yet,
        and nobody was woken for, must be answered with the past.
        """

    def patience(self, waited: float) -> float:
        """Seconds for which more may gather before the thread looks again; 0 if it is to look at once.

        Parameters
        ----------
        waited : float
            Seconds of the last turn for which other threads held the interpreter.
        """

    def lost(self, error: InstanceLost) -> None:
        """The instance is gone: fail everything. The thread ends after this."""

    def close(self) -> None:
        """The pipeline closes: end everything. Called once more when the thread has ended."""


class CompletionLoop(Generic[JobT]):
    """The completion thread's state.

    Parameters
    ----------
    open_completion : callable
        Opens the thread's completion.
    runtime : Runtime or None
        The executor's part; the library has none, and then no channel is opened.
    released : callable
        Told how many jobs left the instance.
    resized : callable
        Told what the instance has when that changes.
    submitted : callable
        Told of each job that the instance accepted.
    ended : callable
        Told of each job, with its result, exactly once.
    lost : callable
        Told, as the last thing but the runtime, that the instance is gone.
    """

    def __init__(
        self,
        open_completion: Callable[[], Completion],
        *,
        runtime: Runtime | None,
        released: Callable[[int], None],
        resized: Callable[[Capacity], None],
        submitted: Callable[[JobT], None],
        ended: Callable[[JobT, JobResult], None],
        lost: Callable[[InstanceLost], None],
    ) -> None:
        self._open_completion = open_completion
        self._runtime = runtime
        self._released = released
        self._resized = resized
        self._submitted = submitted
        self._ended = ended
        self._lost = lost
        self._completion: Completion | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._awake = True
        self._jobs: dict[JobId, JobT] = {}
        self._stop = False
        self._capacity: Capacity | None = None
        self._began, self._worked = time.monotonic(), time.thread_time()
        self.opened = threading.Event()

    # -- any thread ---------------------------------------------------------------------------

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` in the thread."""
        self._inbox.append(function)
        self.wake()

    def wake(self) -> None:
        """Make the thread take a turn. Costs nothing while it is awake already."""
        if not self._awake:
            self._awake = True
            completion = self._completion
            if completion is not None:
                completion.wake()

    def stop(self) -> None:
        """End the thread after its current turn."""
        self._stop = True
        self.call_soon(lambda: None)

    # Called by the submission thread.

    def set_capacity(self, capacity: Capacity) -> None:
        """Hand over what the instance has; the runtime opens with it."""
        self.call_soon(lambda: self._open_agent(capacity))

    def accepted(self, batch: list[tuple[JobT, JobId | Refusal]]) -> None:
        """Hand over what became of a batch."""
        now = time.time()
        self.call_soon(lambda: self._take_batch(batch, now))

    def dropped(self, job: JobT, reason: str) -> None:
        """Hand over a job that was cancelled before it was submitted."""
        self.call_soon(lambda: self._end(job, canceled(reason)))

    def lost(self, error: InstanceLost) -> None:
        """Hand over that the submission thread lost the instance."""

        def fail() -> None:
            raise error

        self.call_soon(fail)

    # -- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        """Wait and act until stopped, or until the instance is lost."""
        try:
            self._completion = self._open_completion()
            self.opened.set()
            while not self._stop:
                self._turn(self._completion)
        except InstanceLost as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the completion thread failed")
            self._fail(InstanceLost(f"the completion thread failed: {error!r}"))
        finally:
            completion, self._completion = self._completion, None
            if completion is not None:
                completion.close()
            self.opened.set()

    def _turn(self, completion: Completion) -> None:
        while self._inbox:
            self._inbox.popleft()()
        if self._runtime is not None and self._capacity is not None:
            self._runtime.turn()
            waited = (time.monotonic() - self._began) - (time.thread_time() - self._worked)
            if not self._stop and (patience := self._runtime.patience(waited)):
                time.sleep(patience)
        self._awake = False
        # Looked at again, now that wake-ups work again: what came in since has woken nobody.
        events = completion.poll(0 if self._inbox or self._stop else self._timeout())
        self._awake = True
        self._began, self._worked = time.monotonic(), time.thread_time()
        ended = 0
        for event in events:
            if isinstance(event, JobEnded):
                ended += 1
                self._end(self._jobs.pop(event.job_id), event.result)
            elif self._runtime is None:
                continue
            elif isinstance(event, PeerMessage):
                self._runtime.message(event.peer, event.body)
            elif isinstance(event, PeerLost):
                self._runtime.peer_lost(event.peer)
            else:
                self._change_capacity(event.capacity)
        if ended:
            self._released(ended)

    def _timeout(self) -> float | None:
        deadline = (
            self._runtime.deadline() if self._runtime is not None and self._capacity is not None else None
        )
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _open_agent(self, capacity: Capacity) -> None:
        assert self._completion is not None
        self._capacity = capacity
        if self._runtime is not None:
            self._runtime.opened(capacity, self._completion.channel(), self._completion.send)

    def _change_capacity(self, capacity: Capacity) -> None:
        self._resized(capacity)
        if self._runtime is not None and self._capacity is not None:
            self._runtime.resized(capacity)

    def _take_batch(self, batch: list[tuple[JobT, JobId | Refusal]], now: float) -> None:
        assert self._completion is not None
        for job, answer in batch:
            if isinstance(answer, Refusal):
                self._end(job, refused(answer.reason))
            else:
                job.advance(JobState.SUBMITTED)
                job.t_submit = now
                self._jobs[answer] = job
                self._completion.watch(answer)
                self._submitted(job)

    def _end(self, job: JobT, result: JobResult) -> None:
        if not job.ended:
            self._ended(job, result)

    def _fail(self, error: InstanceLost) -> None:
        logger.error("%s", error)
        self._jobs.clear()
        self._lost(error)
        if self._runtime is not None:
            self._runtime.lost(error)


def tell(function: Callable[..., None], *arguments: object) -> None:
    """Call a listener; an error in it is logged, and harms nobody else's job."""
    try:
        function(*arguments)
    except Exception:
        logger.exception("a job listener failed")
