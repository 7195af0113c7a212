"""CallbackFuture: a future like those of the standard library, but smaller."""

from __future__ import annotations

import threading
from concurrent.futures import Future, TimeoutError, as_completed, wait

import pytest

from parsl_flux_bulk.pipeline.callbacks import CallbackFuture


def test_it_has_what_a_future_of_the_standard_library_has():
    assert vars(CallbackFuture()).keys() == vars(Future()).keys()


def test_threads_wait_for_the_result():
    future, results = CallbackFuture(), []
    threads = [threading.Thread(target=lambda: results.append(future.result(timeout=60))) for _ in range(3)]
    for thread in threads:
        thread.start()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    future.set_result(7)
    for thread in threads:
        thread.join(60)

    assert results == [7, 7, 7]
    assert future.result(timeout=0) == 7


def test_several_futures_can_be_waited_for():
    futures = [CallbackFuture() for _ in range(3)]

    def set_results():
        for number, future in enumerate(futures):
            future.set_result(number)

    setter = threading.Timer(0.01, set_results)
    setter.start()

    assert {future.result() for future in as_completed(futures, timeout=60)} == {0, 1, 2}
    assert wait(futures, timeout=60).not_done == set()
    setter.join()


def test_every_callback_is_called_whatever_the_others_raise(caplog):
    future, called = CallbackFuture(), []

    def leave(_):
        raise SystemExit(3)

    future.add_done_callback(leave)
    future.add_done_callback(called.append)
    future.set_result(1)

    assert called == [future]
    assert "leave: SystemExit(3)" in caplog.text
