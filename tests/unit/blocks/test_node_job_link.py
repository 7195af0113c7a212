"""The link to a node job's program: nothing that any thread sends stays behind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import pytest

from parsl_flux_bulk.blocks.packed.node_jobs import Link
from parsl_flux_bulk.protocol import frames

ROUNDS = 20_000


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Completion:
    """Counts the records that are sent to a peer."""

    def __init__(self) -> None:
        self.count = 0

    def send(self, peer: object, body: bytes) -> None:
        self.count += sum(1 for _ in frames.decode(body))


def test_what_several_threads_send_while_the_launcher_sends_is_all_sent(switching: None) -> None:
    completion: Any = Completion()
    calls: list[Callable[[Any], None]] = []
    called = threading.Event()
    done = threading.Event()

    def call(function: Callable[[Any], None]) -> None:
        calls.append(function)
        called.set()

    def launcher() -> None:
        while not (done.is_set() and not calls):
            called.wait(0.1)
            called.clear()
            while calls:
                calls.pop(0)(completion)

    link = Link("peer", call)
    threads = [
        threading.Thread(target=lambda: [link.send([(1, 0, 0, b"")]) for _ in range(ROUNDS)])
        for _ in range(3)
    ]
    sender = threading.Thread(target=launcher)
    sender.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    sender.join(60)
    helpers.wait_until(lambda: completion.count == 3 * ROUNDS, 30.0, "everything is sent")
