"""The progress bar as text."""

from __future__ import annotations

import io

from parsl_flux_bulk.cli.bulksubmit import progress
from parsl_flux_bulk.cli.bulksubmit.progress import bar, open_progress


def test_a_full_bar() -> None:
    assert bar(1025, 1025, 34.9) == "|" + "█" * 58 + "| 100.0% (29.4 job/s)"


def test_a_bar_is_full_only_when_all_have_ended() -> None:
    assert bar(99_999, 100_000, 10.0, width=10) == "|█████████-| 99.9% (9999.9 job/s)"


def test_a_bar_of_nothing() -> None:
    assert bar(0, 0, 0.0, width=4) == "|████| 100.0% (0.0 job/s)"
    assert bar(0, 8, 0.0, width=4) == "|----| 0.0% (0.0 job/s)"


def test_a_bar_in_the_C_locale() -> None:
    assert bar(1, 2, 1.0, width=4, encoding="ascii") == "|##--| 50.0% (1.0 job/s)"


def test_plain_output_has_the_last_state_only() -> None:
    stream = io.StringIO()
    shown = open_progress(stream)
    for done in range(1, 5):
        shown.update(done, 4, 1.0)
    shown.line("a line")
    shown.finish()
    assert stream.getvalue() == f"a line\n{bar(4, 4, 1.0)}\n"


def test_plain_output_of_a_long_run_has_a_bar_now_and_then(monkeypatch) -> None:
    monkeypatch.setattr(progress.Progress, "interval", 0.0)
    stream = io.StringIO()
    shown = open_progress(stream)
    shown.update(1, 2, 1.0)
    shown.update(2, 2, 1.0)
    shown.finish()
    assert stream.getvalue() == f"{bar(1, 2, 1.0)}\n{bar(2, 2, 1.0)}\n"


def test_the_time_left() -> None:
    assert bar(1, 4, 1.0, width=4, left=True) == "|█---| 25.0% (1.0 job/s, 3s left)"
    assert bar(1, 200, 1.0, width=1, left=True).endswith("(1.0 job/s, 3m19s left)")
    assert bar(1, 7260, 1.0, width=1, left=True).endswith("(1.0 job/s, 2h00m left)")
    assert bar(4, 4, 1.0, width=4, left=True) == bar(4, 4, 1.0, width=4)
