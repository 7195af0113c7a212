"""The completion thread's loop gives the runtime turns while it handles a long batch of events."""

import functools
import time

import pytest

from parsl_flux_bulk.instances.base import PeerMessage
from parsl_flux_bulk.instances.call_queue import CallQueue
from parsl_flux_bulk.pipeline.completion import SLICE, CompletionLoop, Runtime


class OneBatch:
    """A completion that reports one batch of messages, and then stops the loop."""

    def __init__(self, count):
        self.batches = [[PeerMessage(1, b"%d" % number) for number in range(count)]]
        self.stop = None

    def wake(self):
        pass

    def poll(self, timeout):
        if self.batches:
            return self.batches.pop()
        self.stop()
        return []


class SlowRuntime(Runtime):
    """Takes more than a quarter of a slice for each message, by a clock of its own; notes what happens."""

    def __init__(self):
        super().__init__()
        self.log = []
        self.now = 0.0

    def message(self, peer, body):
        self.log.append(body)
        self.now += SLICE * 0.26

    def turn(self):
        self.log.append("turn")


@pytest.fixture
def run(monkeypatch):
    return functools.partial(log_of, monkeypatch)


def log_of(monkeypatch, count):
    completion, runtime = OneBatch(count), SlowRuntime()
    monkeypatch.setattr(time, "monotonic", lambda: runtime.now)
    nothing = lambda *_: None  # noqa: E731
    loop = CompletionLoop(
        completion, CallQueue(), runtime, released=nothing, resized=nothing, submitted=nothing, ended=nothing
    )
    completion.stop = loop.stop
    loop.run()
    return runtime.log


def test_a_long_batch_of_events_is_interrupted_by_turns(run):
    log = run(40)
    assert [each for each in log if each != "turn"] == [b"%d" % number for number in range(40)]
    longest = max(len(part.split()) for part in " ".join(map(str, log)).split("turn"))
    assert longest == 4


def test_a_short_batch_gets_one_turn(run):
    assert run(1) == ["turn", b"0", "turn", "turn"]
