"""The charts of a report, drawn with Bokeh. Colors of text and lines are set in the browser (`page.js`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    Range1d,
)
from bokeh.plotting import figure

from parsl_flux_bulk.cli.report.run_data import PHASES, QUANTILES, Bars, RunData
from parsl_flux_bulk.trace.format import OUTCOMES

SINGLE_BARS = 3000
"""Tasks in view, at most, that are drawn one by one; more are drawn as shares of busy time."""

KEPT_BARS = 110_000
"""Tasks, at most, whose bars are in the page (24 bytes each); of more, there are shares of busy time only."""

NAMED_ROWS = 30
"""Rows of the timeline, at most, that have their names beside them."""

IMAGE_ROWS, IMAGE_BINS = 240, 900

HEIGHT = 190
"""Pixels of a chart that is not the timeline."""

PALETTE = ("#3b82c4", "#e08a2e", "#3f9e6b", "#8b6fc9", "#c4688f", "#8a7a52", "#4aa3a8", "#a0a33b")
BAD = "#d64545"
ACCENT, SOFT = "#3b82c4", "#8fb8de"

_SECONDS = """(s, digits) => {
  for (const [limit, unit, factor] of [[9.9e-4, 'µs', 1e6], [0.99, 'ms', 1e3], [Infinity, 's', 1]])
    if (s < limit) return Number((s * factor).toPrecision(digits)).toLocaleString() + ' ' + unit;
}"""


def _figure(height: int, x_range: Any, **more: Any) -> Any:
    chart = figure(
        height=height,
        x_range=x_range,
        sizing_mode="stretch_width",
        tools="xpan,xwheel_zoom,box_zoom,reset",
        active_scroll=None,
        toolbar_location="right",
        outline_line_color=None,
        **more,
    )
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    return chart


def _steps(chart: Any, source: Any, name: str, color: str, legend: str) -> None:
    # With lines, because there would be gaps between neighbors.
    look = {"fill_color": color, "line_color": color, "line_width": 0.5, "legend_label": legend}
    chart.quad("left", "right", name, 0, source=source, **look)


def _legend(chart: Any, *, visible: bool = True) -> None:
    chart.legend.update(orientation="horizontal", location="top_right", spacing=16, visible=visible)


def _tell(chart: Any, *tooltips: tuple[str, str], renderers: Any = "auto") -> None:
    chart.add_tools(HoverTool(renderers=renderers, tooltips=list(tooltips)))


def rates(data: RunData, x_range: Any) -> Any:
    """Draw how many tasks ended a second."""
    edges, every, bad = data.rates()
    chart = _figure(HEIGHT, x_range)
    source = ColumnDataSource({"left": edges[:-1], "right": edges[1:], "every": every, "bad": bad})
    _steps(chart, source, "every", ACCENT, "all")
    if bad.any():
        _steps(chart, source, "bad", BAD, "not completed")
    _legend(chart, visible=bool(bad.any()))
    _tell(chart, ("from", "@left{0.00} s"), ("ended/s", "@every{0.00}"), ("not completed/s", "@bad{0.00}"))
    chart.y_range = Range1d(0, 1.25 * max(float(np.max(every, initial=0.0)), 1e-9))
    return chart


def running(data: RunData, x_range: Any) -> Any:
    """Draw the cores that tasks occupied beside those that the instance had."""
    chart = _figure(HEIGHT, x_range)
    edges, busy = data.edges, data.running()
    source = ColumnDataSource({"left": edges[:-1], "right": edges[1:], "busy": busy})
    _steps(chart, source, "busy", SOFT, "in use")
    times, cores = data.capacity()
    if times:
        chart.step(times, cores, mode="after", line_color="#c46a1b", line_width=2, legend_label="available")
    _tell(chart, ("from", "@left{0.00} s"), ("cores in use", "@busy{0.0}"))
    _legend(chart)
    chart.y_range = Range1d(0, 1.3 * max([float(np.max(busy, initial=1.0)), *cores]))
    return chart


# -- the timeline ------------------------------------------------------------------------------------


def timeline_title(data: RunData) -> str:
    """Return what the rows of the timeline are."""
    workers = data.worker_rows
    kinds = [f"{workers} worker{'s' * (workers > 1)}"] if workers else []
    if jobs := len(data.rows) - workers:
        kind = "job" if data.noun == "job" else "task job"
        kinds.append(f"up to {jobs} {kind}{'s' * (jobs > 1)} at once")
    return f"Timeline of {' and '.join(kinds) or 'nothing'}"


def timeline(data: RunData, x_range: Any) -> Any:
    """Draw what each worker did when; zooming in shows single tasks."""
    count = max(1, len(data.rows))
    unit = max(1.0, count / 40)  # thinner rows would not be seen
    blocks, jobs = unit * _height(data.blocks), unit * _height(data.jobs)
    above = blocks + jobs
    y_range = Range1d(count + 0.3, -above - 0.3, bounds=(-above - 1, count + 1))
    height = min(720, 90 + int(18 * min(count, 30) + 16 * min(above / unit, 10)))
    chart = _figure(height, x_range, y_range=y_range)
    _draw_bars(chart, data.blocks, "#8a7a52", -above, unit)
    _draw_bars(chart, data.jobs, "#7d8794", -jobs, unit)
    # Never faint: one busy moment of an interval is seen.
    palette = [f"rgba(59,130,196,{(level > 0) * (0.15 + 0.85 * level / 255):.3f})" for level in range(256)]
    busy = chart.image(
        image=[data.busy(IMAGE_ROWS, IMAGE_BINS)],
        x=0,
        y=0,
        dw=data.seconds,
        dh=count,
        color_mapper=LinearColorMapper(palette=palette, low=0, high=255),
    )
    if len(data) <= KEPT_BARS:
        _single_tasks(chart, data, busy)
    names: dict[float, str] = {}
    if count <= NAMED_ROWS:
        names = {number + 0.5: _short(row) for number, row in enumerate(data.rows)}
    if data.jobs.left:
        names[-jobs / 2] = "worker jobs"
    if data.blocks.left:
        names[-above + blocks / 2] = "blocks"
    chart.yaxis.ticker = FixedTicker(ticks=list(names))
    chart.yaxis.major_label_overrides = names
    chart.ygrid.visible = False
    return chart


def _single_tasks(chart: Any, data: RunData, busy: Any) -> None:
    """Draw single tasks in place of the image as soon as few enough are in view."""
    columns = "left", "right", "top", "bottom", "color", "text", "where"
    shown = ColumnDataSource({name: [] for name in columns})
    look = {"fill_color": "color", "line_color": "color", "line_width": 0.5}
    bars = chart.quad("left", "right", "top", "bottom", source=shown, **look)
    span = ("from", "@left{0.000} s"), ("to", "@right{0.000} s")
    _tell(chart, (data.noun, "@text"), ("on", "@where"), *span, renderers=[bars])
    choose = CustomJS(
        args={
            "every": ColumnDataSource(_bars_of_tasks(data)),
            "shown": shown,
            "busy": busy,
            "xr": chart.x_range,
            "yr": chart.y_range,
            "rows": data.rows,
            "apps": {str(index): name for index, name in data.trace.apps.items()},
            "outcomes": list(OUTCOMES),
            "colors": list(PALETTE),
            "bad": BAD,
            "limit": SINGLE_BARS,
        },
        code=_CHOOSE,
    )
    for bounds in (chart.x_range, chart.y_range):
        bounds.js_on_change("start", choose)
        bounds.js_on_change("end", choose)
    chart.tags = [choose]  # page.js executes it once


_CHOOSE = """
const d = every.data, n = d.left.length;
const x0 = xr.start, x1 = xr.end, y0 = Math.min(yr.start, yr.end), y1 = Math.max(yr.start, yr.end);
const found = [];
for (let i = 0; i < n && found.length <= limit; i++)
  if (d.right[i] >= x0 && d.left[i] <= x1 && d.row[i] + 1 >= y0 && d.row[i] <= y1) found.push(i);
const single = found.length <= limit;
busy.visible = !single;
const out = {left: [], right: [], top: [], bottom: [], color: [], text: [], where: []};
if (single) for (const i of found) {
  out.left.push(d.left[i]); out.right.push(d.right[i]);
  out.top.push(d.row[i] + 0.1); out.bottom.push(d.row[i] + 0.9);
  out.color.push(d.outcome[i] ? bad : colors[(d.app[i] - 1) % colors.length]);
  const app = apps instanceof Map ? apps.get(String(d.app[i])) : apps[d.app[i]];
  out.text.push(`${d.id[i]} ${app ?? '?'}, ${outcomes[d.outcome[i]]}`);
  out.where.push(rows[d.row[i]]);
}
shown.data = out;
"""


def _bars_of_tasks(data: RunData) -> dict[str, Any]:
    return {
        "left": data.begin.astype(np.float32),
        "right": data.end.astype(np.float32),
        "row": data.row.astype(np.int32),
        "app": data.app.astype(np.int32),
        "outcome": data.outcome.astype(np.uint8),
        "id": data.id.astype(np.int32),
    }


def _height(bars: Bars) -> int:
    return max(bars.row, default=-1) + 1


def _draw_bars(chart: Any, bars: Bars, color: str, offset: float, unit: float) -> None:
    if not bars.left:
        return
    source = ColumnDataSource(
        {
            "left": bars.left,
            "right": bars.right,
            "top": [offset + unit * (row + 0.15) for row in bars.row],
            "bottom": [offset + unit * (row + 0.85) for row in bars.row],
            "label": bars.label,
        }
    )
    look = {"fill_color": color, "fill_alpha": 0.75, "line_color": None}
    drawn = chart.quad("left", "right", "top", "bottom", source=source, **look)
    _tell(chart, ("", "@label"), ("from", "@left{0.0} s"), ("to", "@right{0.0} s"), renderers=[drawn])


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"…{name[-15:]}"


# -- phases ------------------------------------------------------------------------------------------


def phases(data: RunData) -> Any:
    """Draw the distribution of each phase: median, quartiles, and from 5 to 95 percent."""
    found = data.phases()
    names = [name for name, *_ in reversed(PHASES) if name in found]
    what = {name: about for name, _, _, about in PHASES}
    spans = [np.maximum(found[name][0], 1e-6) for name in names]  # the axis is logarithmic
    low = min((float(span[0]) for span in spans), default=1e-3)
    high = max((float(span[-1]) for span in spans), default=1.0)
    bounds = Range1d(low / 1.5, max(high, low * 10) * 1.5)
    chart = _figure(HEIGHT, bounds, y_range=names or ["nothing"], x_axis_type="log")
    marks = [f"q{int(100 * quantile)}" for quantile in QUANTILES]
    columns: dict[str, Any] = {mark: [float(s[i]) for s in spans] for i, mark in enumerate(marks)}
    source = ColumnDataSource({"phase": names, "what": [what[name] for name in names], **columns})
    chart.segment("q5", "phase", "q95", "phase", source=source, line_color=SOFT, line_width=3)
    box = {"fill_color": ACCENT, "line_color": None}
    chart.hbar(y="phase", left="q25", right="q75", height=0.5, source=source, **box)
    dot = {"size": 11, "fill_color": "#ffffff", "line_color": "#20242a", "line_width": 2}
    chart.scatter("q50", "phase", source=source, **dot)
    tooltips = [
        ("", "@phase: @what"),
        ("median", "@q50{custom}"),
        (f"half of the {data.noun}s", "@q25{custom} to @q75{custom}"),
        ("nine in ten", "@q5{custom} to @q95{custom}"),
    ]
    hover = CustomJSHover(code=f"return ({_SECONDS})(value, 3)")
    chart.add_tools(HoverTool(tooltips=tooltips, formatters={f"@{mark}": hover for mark in marks}))
    chart.xaxis.formatter = CustomJSTickFormatter(code=f"return ({_SECONDS})(tick, 1)")
    chart.ygrid.visible = False
    return chart
