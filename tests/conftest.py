"""What every suite gets: a leak check, a time-out, and the ``flux`` marker.

* A test that leaves a thread or a child process behind fails, with the thread's stack or the
  process's command line. ``@pytest.mark.may_leak(reason)`` exempts one.
* A test that takes more than 120 s fails; ``@pytest.mark.timeout(seconds)`` says otherwise.
* ``@pytest.mark.flux`` needs a real Flux. Where there is none the test is skipped, and the head of
  the report says so once more.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator

import helpers
import pytest

DEFAULT_TIMEOUT = 120.0
"""Seconds a test may take."""

LEAK_BOUND = 5.0
"""Seconds that threads and processes have to end after their test."""

PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flux: needs the flux command and its Python bindings")
    config.addinivalue_line("markers", "may_leak(reason): exempt from the leak check")
    # Orphans of a test come to this process, so that the leak check sees them too.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_report_header() -> str:
    missing = helpers.flux_missing()
    return f"flux: tests against it are SKIPPED: {missing}" if missing else "flux: here, tests against it run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(DEFAULT_TIMEOUT))
        if item.get_closest_marker("flux") is not None and helpers.flux_missing():
            item.add_marker(pytest.mark.skip(reason=f"no Flux here: {helpers.flux_missing()}"))


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a process behind."""
    threads, processes = set(helpers.own_threads()), set(helpers.own_processes())
    yield
    if request.node.get_closest_marker("may_leak") is not None:
        return

    def leaked() -> list[str]:
        left = [helpers.stack_of(t) for i, t in helpers.own_threads().items() if i not in threads]
        return left + [
            f"process {pid}: {command}"
            for pid, command in helpers.own_processes().items()
            if pid not in processes
        ]

    deadline = time.monotonic() + LEAK_BOUND
    while (left := leaked()) and time.monotonic() < deadline:
        time.sleep(0.005)
    if left:
        pytest.fail("left behind by this test:\n" + "\n".join(left), pytrace=False)
