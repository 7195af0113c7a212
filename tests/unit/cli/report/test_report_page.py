"""The report: what is computed from a trace, and the page in a browser."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import psutil
import pytest
from traces import write_trace

from parsl_flux_bulk.cli.flux_bulk import main
from parsl_flux_bulk.trace.reader import read

bokeh = pytest.importorskip("bokeh")

from parsl_flux_bulk.cli.report.page import page  # noqa: E402
from parsl_flux_bulk.cli.report.run_data import RunData  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

PAGE_LIMIT = 5_000_000
"""Bytes of a page."""

READY_LIMIT = 30_000_000
"""CPU time of all processes of the browser until a page is drawn, in units of :func:`helpers.cpu_unit`.
Measured: 8,000,000."""

SECTIONS = [
    "Tasks that ended per second", "Cores in use",
    "Timeline of 4 workers and up to 2 task jobs at once", "Where time went: a task's seconds in each phase",
    "Apps", "Failures", "Configuration",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("small") / "small.trace", tasks=10, workers=4, task_jobs=2)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    return write_trace(directory / "large.trace", tasks=100_000, workers=256, task_jobs=50)


# -- what is computed ---------------------------------------------------------------------------------


def test_no_two_tasks_of_a_row_overlap(small: Path) -> None:
    data = RunData(read(small))
    assert len(data.rows) == 6 and data.rows[:4] == ["node0/0", "node0/1", "node0/2", "node0/3"]
    spans = sorted(zip(data.row.tolist(), data.begin.tolist(), data.end.tolist(), strict=True))
    for (row, _, end), (other, begin, _) in itertools.pairwise(spans):
        assert row != other or begin >= end


def test_curves_hold_what_the_tasks_sum_up_to(small: Path) -> None:
    data = RunData(read(small))
    edges, every, bad = data.rates()
    width = edges[1] - edges[0]
    assert every.sum() * width == pytest.approx(12) and bad.sum() * width == pytest.approx(3)
    busy = ((data.end - data.begin) * data.cores).sum()
    assert data.running().sum() * data.seconds / len(data.running()) == pytest.approx(busy)
    assert data.capacity()[1] == [4.0, 4.0]
    assert set(data.cores.tolist()) == {1.0, 2.0}
    image = data.busy(240, 100)
    assert image.shape == (6, 100) and image[4].max() == 255 and image[0][:10].max() == 0


def test_phases_and_apps(small: Path) -> None:
    data = RunData(read(small))
    phases = data.phases()
    assert list(phases) == ["queue", "assign", "run", "return"]
    assert list(phases["assign"][0]) == pytest.approx([0.05] * 5, abs=1e-6)
    assert phases["return"][1] == pytest.approx(0.01, abs=1e-5)
    assert {row["app"]: (row["tasks"], row["bad"]) for row in data.apps()} == {
        "simulate": (5, 1),
        "train <b>": (4, 1),
        "select": (3, 1),
    }
    assert not any(math.isnan(row["median"]) for row in data.apps())


def test_a_trace_without_tasks_has_a_page(tmp_path: Path) -> None:
    text = page(read(write_trace(tmp_path / "a.trace", tasks=0, workers=1, failed=0)))
    assert "<p>None.</p>" in text and "Timeline of nothing" in text


def test_many_rows_share_the_lines_of_the_image(large: Path) -> None:
    image = RunData(read(large)).busy(240, 900)
    assert image.shape == (130, 900) and image[:100, 100:800].min() > 150


# -- the command --------------------------------------------------------------------------------------


def test_the_command_writes_beside_the_trace(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(small.parent)]) == 0
    written = small.with_suffix(".html")
    assert capsys.readouterr().out == f"{written}\n"
    text = written.read_text()
    for escaped in ("train &lt;b&gt;", "bad &lt;value&gt; 1", "line &lt;2&gt;", "&#x27;&lt;none&gt;&#x27;"):
        assert escaped in text
    assert "train <b>" not in text.partition("<main>")[2].partition("</main>")[0]
    rows = re.findall("<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", text)
    assert {("Python version", "3.11.7"), ("python", "None"), ("working directory", "/home")} <= set(rows)
    assert not re.search(r"""(src|href)\s*=\s*["']https?:""", text.partition("<main>")[2])


def test_a_run_without_a_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "has no trace: give the run directory" in capsys.readouterr().err


def test_one_output_for_two_traces_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.trace", "b.trace"):
        write_trace(tmp_path / name, tasks=1, workers=1)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "x.html")]) == 2
    assert "has 2 traces" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


# -- in a browser -------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no Chromium with chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def show(browser: Any, path: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """Open a page and wait until it is drawn; return its measures."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.set_script_timeout(60)
    before = cpu_seconds(browser)
    browser.get(path.as_uri())
    shown = json.loads(browser.execute_async_script(_MEASURE))
    return {**shown, "cpu": cpu_seconds(browser) - before}


def cpu_seconds(browser: Any) -> float:
    """Seconds that the browser's processes have computed."""
    processes = psutil.Process(browser.service.process.pid).children(recursive=True)
    return sum(sum(process.cpu_times()[:2]) for process in processes)


_MEASURE = """
const done = arguments[0];
const root = document.documentElement;
(function wait() {
  if (root.dataset.ready !== "yes") { setTimeout(wait, 10); return; }
  const figures = Bokeh.documents.flatMap((each) => each.roots());
  const timeline = figures.find((each) => each.tags.length);
  const choose = timeline.tags[0];
  done(JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    width: window.innerWidth,
    page: getComputedStyle(document.body).backgroundColor,
    card: figures[0].border_fill_color,
    titles: [...document.querySelectorAll("h2")].map((each) => each.textContent),
    single: choose.args.shown.data.left.length,
    image: choose.args.busy.visible,
  }));
})();
"""


_ZOOM = """
const done = arguments[0];
const chart = Bokeh.documents.flatMap((each) => each.roots()).find((each) => each.tags.length);
const args = chart.tags[0].args;
chart.x_range.setv({start: 100, end: 102});
(function wait() {
  if (args.busy.visible) setTimeout(wait, 10); else done(args.shown.data.left.length);
})();
"""


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_follows_the_colors(browser: Any, small: Path, width: int, dark: bool) -> None:
    html = small.with_name(f"{width}-{dark}.html")
    html.write_text(page(read(small)))
    shown = show(browser, html, width=width, dark=dark)
    assert (shown["width"], shown["overflow"]) == (width, 0)
    assert shown["titles"] == SECTIONS
    assert (shown["page"], shown["card"]) == (
        ("rgb(20, 23, 27)", "#1d2127") if dark else ("rgb(245, 246, 248)", "#ffffff")
    )
    assert (shown["single"], shown["image"]) == (12, False)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []


def test_a_hundred_thousand_tasks_are_shown_as_shares_until_zoomed(browser: Any, large: Path) -> None:
    html = large.with_suffix(".html")
    html.write_text(page(read(large)))
    assert html.stat().st_size < PAGE_LIMIT
    shown = show(browser, html, width=1440, dark=False)
    assert (shown["single"], shown["image"]) == (0, True)
    assert shown["cpu"] < READY_LIMIT * helpers.cpu_unit()
    assert 256 <= browser.execute_async_script(_ZOOM) <= 1500
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []
