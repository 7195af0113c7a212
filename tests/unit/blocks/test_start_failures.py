"""How the executor slows down when blocks end before they join."""

from __future__ import annotations

from parsl_flux_bulk.blocks.start_failures import LONGEST_PAUSE, StartFailures


def test_pauses_double_up_to_a_limit() -> None:
    failures = StartFailures()
    now, pauses = 0.0, []
    for block in range(12):
        assert failures.allowed(4, now) == (1 if block else 4)
        pause = failures.note([str(number) for number in range(block + 1)], [], now)
        assert pause is not None
        assert failures.allowed(1, now + pause - 0.1) == 0
        pauses.append(pause)
        now += pause
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert pauses[-1] == LONGEST_PAUSE


def test_blocks_that_fail_during_a_pause_belong_to_the_attempt_before() -> None:
    failures = StartFailures()
    assert failures.note(["0"], [], 0.0) == 5.0
    assert failures.note(["0", "1"], [], 2.0) is None
    assert failures.in_a_row == 1


def test_what_was_noted_before_is_no_news() -> None:
    failures = StartFailures()
    failures.note(["0"], [], 0.0)
    assert failures.note(["0"], [], 100.0) is None


def test_a_block_that_joins_ends_the_pauses_and_forgives_those_before_it() -> None:
    failures = StartFailures()
    failures.note(["0", "1"], [], 0.0)
    assert failures.note(["0", "1"], ["2"], 1.0) is None
    assert failures.allowed(3, 1.0) == 3
    assert failures.forgiven == {"0", "1"}


def test_a_block_launched_after_the_one_that_joined_counts_although_both_are_seen_together() -> None:
    failures = StartFailures()
    assert failures.note(["0", "2"], ["1"], 0.0) == 5.0
    assert failures.forgiven == {"0"}
