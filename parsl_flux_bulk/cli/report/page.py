"""The page of a report: one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import html
import importlib.resources
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bokeh.embed import components
from bokeh.models import Range1d
from bokeh.resources import Resources

from parsl_flux_bulk.cli.report import charts
from parsl_flux_bulk.cli.report.run_data import RunData
from parsl_flux_bulk.trace.format import OUTCOMES
from parsl_flux_bulk.trace.reader import Trace

SHOWN_FAILURES = 50
"""Groups of failures that are listed."""

SHOWN_APPS = 100


def page(trace: Trace) -> str:
    """Return the page of a trace."""
    data = RunData(trace)
    x_range = Range1d(-0.01 * data.seconds, 1.01 * data.seconds)
    figures = {
        "rates": charts.rates(data, x_range),
        "running": charts.running(data, x_range),
        "timeline": charts.timeline(data, x_range),
        "phases": charts.phases(data),
    }
    script, divs = components(figures)
    here = importlib.resources.files("parsl_flux_bulk.cli.report")
    label = str(trace.run.get("label", "run"))
    noun = data.noun
    body = [
        f"<h1>{html.escape(label)}</h1>",
        _subtitle(data),
        _tiles(data),
        _chart(f"{noun.title()}s that ended per second", divs["rates"]),
        _chart("Cores in use", divs["running"]),
        _chart(charts.timeline_title(data), divs["timeline"], f"{_key(data)}{_hint(data)}"),
        _chart(f"Where time went: a {noun}'s seconds in each phase", divs["phases"], _phases_hint(noun)),
        "<h2>Commands</h2>" if noun == "job" else "<h2>Apps</h2>",
        _apps(data),
        "<h2>Failures</h2>",
        _failures(trace, data),
        "<h2>Configuration</h2>",
        _configuration(trace),
    ]
    return _PAGE.format(
        title=html.escape(f"{label}: report"),
        style=(here / "page.css").read_text(encoding="utf-8"),
        library="\n".join(Resources(mode="inline", components=["bokeh"]).js_raw),
        body="\n".join(body),
        charts=script,
        script=(here / "page.js").read_text(encoding="utf-8"),
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
<script>{library}</script>
</head>
<body>
<main>
{body}
</main>
{charts}
<script>{script}</script>
</body>
</html>
"""


def _chart(title: str, chart: str, hint: str = "") -> str:
    below = f'<p class="hint">{hint}</p>' if hint else ""
    return f'<h2>{html.escape(title)}</h2><div class="chart">{chart}{below}</div>'


def _phases_hint(noun: str) -> str:
    if noun == "job":
        phases = (
            "Queue: until the job was submitted. Assign: in the queue of the instance. "
            "Return: until the end of the job was reported."
        )
    else:
        phases = (
            "Queue: until a worker got the task, or its job was submitted. "
            "Assign: on the way to the worker and in its queue, or of a job, in the queue of the instance. "
            "Return: until the future got the result, or the end of the job was reported."
        )
    return f"Dot: the median. Box: half of the {noun}s. Line: nine in ten. {phases}"


def _key(data: RunData) -> str:
    """Return which color is which app."""
    if len(data) > charts.KEPT_BARS:
        return ""
    apps = list(data.trace.apps.items())[: len(charts.PALETTE)]
    items = [(name, charts.PALETTE[(index - 1) % len(charts.PALETTE)]) for index, name in apps]
    spans = [
        f'<span class="key"><i style="background:{color}"></i>{html.escape(name)}</span>'
        for name, color in [*items, ("not completed", charts.BAD)]
    ]
    return f"{''.join(spans)}<br>"


def _subtitle(data: RunData) -> str:
    run = data.trace.run
    when = datetime.datetime.fromtimestamp(data.start).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    state = "" if data.trace.finished else ", still running, or killed"
    place = html.escape(str(run.get("instance", "")))
    return f'<p class="sub">{html.escape(when + state)} &middot; {place}. Times are seconds since then.</p>'


def _tiles(data: RunData) -> str:
    counts = Counter(data.outcome.tolist())
    times, cores = data.capacity()
    there = sum(c * (b - a) for a, b, c in zip(times, times[1:], cores, strict=False))
    busy = float(((data.end - data.begin) * data.cores).sum()) if len(data) else 0.0
    tiles = [
        (f"{data.noun}s", f"{len(data):,}"),
        *((OUTCOMES[code], f"{count:,}") for code, count in sorted(counts.items()) if code),
        ("took", _seconds(data.seconds)),
        (f"{data.noun}s/s", f"{len(data) / data.seconds:,.1f}"),
    ]
    if there and not math.isnan(busy):
        tiles.append(("of the core time in use", f"{100 * busy / there:.0f}%"))
    cells = [f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in tiles]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _hint(data: RunData) -> str:
    shades = "Shades are the share of time that the rows were busy."
    if len(data) > charts.KEPT_BARS:
        return f"{shades} There are too many {data.noun}s to show single ones."
    if len(data) > charts.SINGLE_BARS:
        few = f"{charts.SINGLE_BARS:,}"
        return (
            f"{shades} Zoom in with box or wheel: single {data.noun}s appear when {few} or fewer are in view."
        )
    return f"Each bar is a {data.noun}."


def _apps(data: RunData) -> str:
    rows = data.apps()
    cells = [
        [
            row["app"], f"{row['tasks']:,}", f"{row['bad']:,}", _seconds(row["core seconds"]),
            _seconds(row["waited"]), _seconds(row["median"]), _seconds(row["p95"]), _seconds(row["longest"]),
        ]
        for row in rows[:SHOWN_APPS]
    ]  # fmt: skip
    head = [
        "command" if data.noun == "job" else "app",
        f"{data.noun}s",
        "failed",
        "core time",
        "waited (median)",
        "ran (median)",
        "ran (95 %)",
        "longest",
    ]
    more = f"<p>and {len(rows) - SHOWN_APPS} more</p>" if len(rows) > SHOWN_APPS else ""
    return _table(head, cells) + more


def _failures(trace: Trace, data: RunData) -> str:
    bad = int((data.outcome != 0).sum())
    if not bad:
        return "<p>None.</p>"
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for failure in trace.failures:
        first = failure["error"].partition("\n")[0]
        groups.setdefault((failure["app"], failure["type"], first), []).append(failure)
    parts = []
    for (app, kind, first), found in sorted(groups.items(), key=lambda item: -len(item[1]))[:SHOWN_FAILURES]:
        one = found[0]
        details = "\n".join(filter(None, [one["error"], *one["notes"]]))
        tasks = ", ".join(str(failure["task"]) for failure in found[:10]) + (" …" if len(found) > 10 else "")
        where = f" on {one['host']}" if one["host"] else ""
        tail = html.escape(one["stderr"])
        stderr = f"<h3>standard error ended with</h3><pre>{tail}</pre>" if tail else ""
        title = html.escape(f"{app}: {kind + ': ' if kind else ''}{first}"[:300])
        parts.append(
            f'<details><summary><span class="count">{len(found)}&times;</span> {title}</summary>'
            f"<p>{data.noun} {html.escape(tasks + where)}</p><pre>{html.escape(details)}</pre>"
            f"{stderr}</details>"
        )
    described = len(trace.failures)
    some = "" if described >= bad else f" {described:,} of them are described below."
    note = f"<p>{bad:,} {data.noun}{'s' * (bad > 1)} did not complete.{some}</p>"
    return note + "".join(parts)


def _configuration(trace: Trace) -> str:
    run = trace.run
    names = {
        "command": "command", "directory": "working directory", "host": "host", "pid": "process id",
        "python": "Python version", "version": "parsl_flux_bulk version",
    }  # fmt: skip
    rows = [[title, str(run[name])] for name, title in names.items() if name in run]
    rows += [[name, str(value)] for name, value in run.get("config", {}).items()]
    return _table(["name", "value"], rows, kind="config")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead>{line(head, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    units = (1e-3, "µs", 1e6), (1.0, "ms", 1e3), (120.0, "s", 1.0), (7200.0, "min", 1 / 60)
    for limit, unit, factor in units:
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 3600:,.1f} h"
