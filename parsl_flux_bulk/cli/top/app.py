"""The terminal application of `flux-bulk top`."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from parsl_flux_bulk.cli.top.summary import FAILURE_COLUMNS, TASK_COLUMNS, Summary
from parsl_flux_bulk.trace.reader import Trace
from parsl_flux_bulk.trace.writer import request

PERIOD = 1.0
"""Seconds between two looks at the trace."""

WATCH_PERIOD = 5.0
"""Seconds between two requests that the run name its tasks."""

SORTS = ("seconds", "task", "app", "where", "state")


class Top(App[None]):  # type: ignore[misc]  # Textual is not followed
    """Shows a trace, and what is added to it."""

    CSS = """
    #summary { height: auto; padding: 0 1; }
    .heading { padding: 0 1; text-style: bold; background: $panel; height: 1; }
    #tasks { height: 2fr; }
    #failures { height: 1fr; }
    Details { align: center middle; }
    #details { width: 90%; height: 80%; border: round $accent; background: $surface; padding: 0 1; }
    """

    BINDINGS: ClassVar[list[Any]] = [
        ("q", "quit", "Quit"),
        ("s", "sort", "Sort"),
        ("o", "open", "Story and stderr (or Enter)"),
        ("c", "cancel", "Cancel"),
    ]

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.sort = 0
        self.reached = True
        self._asked = 0.0

    def compose(self) -> ComposeResult:
        yield Static(id="summary", markup=False)
        yield Static("Tasks", id="tasks-heading", classes="heading", markup=False)
        yield DataTable(id="tasks", cursor_type="row", zebra_stripes=True)
        yield Static("Last failures", classes="heading", markup=False)
        yield DataTable(id="failures", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#tasks", DataTable).add_columns(*TASK_COLUMNS)
        self.query_one("#failures", DataTable).add_columns(*FAILURE_COLUMNS)
        self.query_one("#tasks", DataTable).focus()
        self.look()
        self.set_interval(PERIOD, self.look)

    def look(self) -> None:
        """Read what is new, and show it."""
        self.trace.update()
        now = time.monotonic()
        if not self.trace.finished and now >= self._asked + WATCH_PERIOD:
            self._asked = now
            self.reached = self.ask("watch")
        summary = Summary(self.trace)
        self.query_one("#summary", Static).update("\n".join(summary.lines()))
        self.query_one("#tasks-heading", Static).update(self._heading())
        _fill(self.query_one("#tasks", DataTable), summary.tasks(SORTS[self.sort]))
        _fill(self.query_one("#failures", DataTable), summary.failures())
        if isinstance(self.screen, Details):
            self.screen.show(summary)

    def _heading(self) -> str:
        if self.trace.finished:
            return "Tasks"
        if not self.reached:
            return "Tasks are not named: the run has ended, or is on another host or file system"
        return f"Tasks, some that run and some that wait, by {SORTS[self.sort]}"

    def ask(self, line: str) -> bool:
        """Send a request to the run; return whether it can have arrived."""
        try:
            request(self.trace.path, line)
        except OSError:
            return False
        return True

    def chosen(self) -> int | None:
        """Return the task under the cursor of the table that has the focus."""
        table = self.focused
        if not isinstance(table, DataTable) or not table.row_count:
            return None
        return int(table.get_row_at(table.cursor_row)[0])

    def action_sort(self) -> None:
        """Sort the tasks by the next column."""
        self.sort = (self.sort + 1) % len(SORTS)
        self.look()

    def action_open(self) -> None:
        """Show the story and the standard error of a task."""
        if (task_id := self.chosen()) is not None:
            self.ask(f"story {task_id}")
            self.push_screen(Details(task_id))
            self.look()

    def on_data_table_row_selected(self, event: Any) -> None:
        """Enter belongs to the table that has the focus."""
        self.action_open()

    def action_cancel(self) -> None:
        """Cancel the task under the cursor: the key must be pressed twice."""
        task_id = self.chosen()
        if task_id is None:
            return
        if getattr(self, "_to_cancel", None) != task_id:
            self._to_cancel: int | None = task_id
            self.notify(f"Press c again to cancel task {task_id}")
            return
        self._to_cancel = None
        sent = self.ask(f"cancel {task_id}")
        self.notify(f"Canceling task {task_id}" if sent else "The run cannot be reached from here")


class Details(ModalScreen[None]):  # type: ignore[misc]
    """What is known of one task."""

    BINDINGS: ClassVar[list[Any]] = [("escape,enter,q", "app.pop_screen", "Back")]

    def __init__(self, task_id: int) -> None:
        super().__init__()
        self.task_id = task_id

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="details") as details:
            details.border_subtitle = "Esc closes"
            yield Static(f"Task {self.task_id}: asking ...", id="text", markup=False)

    def show(self, summary: Summary) -> None:
        """Show what has become known."""
        if text := summary.details(self.task_id):
            for widget in self.query("#text"):  # none before the screen is composed
                widget.update(f"Task {self.task_id}\n\n{text}")


def _fill(table: Any, rows: list[tuple[Any, ...]]) -> None:
    """Replace the rows, and keep the cursor on its task."""
    row = table.cursor_row
    chosen = table.get_row_at(row)[0] if table.row_count and row < table.row_count else None
    table.clear()
    for values in rows:
        table.add_row(*(str(value) for value in values))
    ids = [str(values[0]) for values in rows]
    if chosen in ids:
        row = ids.index(chosen)
    if ids:
        table.move_cursor(row=min(row, len(ids) - 1), animate=False)
