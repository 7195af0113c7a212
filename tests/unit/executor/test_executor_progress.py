"""`progress(executor)`: what its line says, on a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import threading
import time
from pathlib import Path
from typing import Any

import helpers
import pytest

from parsl_flux_bulk import FluxPoolExecutor, progress
from parsl_flux_bulk.executor.progress import Counts, Meter


def test_a_line_has_the_rate_of_the_last_seconds_and_the_time_left() -> None:
    meter = Meter(total=100)
    assert meter.line(Counts(waiting=10), 0.0) == "0/100 tasks, 0 running, 10 waiting"
    shown = meter.line(Counts(waiting=6, running=2, ended=20, failed=1, busy=2, workers=4), 2.0)
    assert shown == "20/100 tasks, 2 running, 6 waiting, 1 failed, 2 of 4 workers busy, 10.0/s, 8s left"
    # The first two seconds are forgotten: 20 tasks in the last ten.
    assert meter.line(Counts(waiting=60, ended=40), 12.0).endswith("2.0/s, 30s left")
    assert "left" not in meter.line(Counts(ended=100), 13.0)


def test_more_tasks_than_expected_are_counted() -> None:
    assert Meter(total=2).line(Counts(waiting=3, running=1, ended=4), 0.0).startswith("4/8 tasks")


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with FluxPoolExecutor(instance="local") as pool:
        pool.submit(int).result(60)
        with progress(pool, stream=stream):
            for future in [pool.submit(int) for _ in range(3)]:
                future.result(60)
            # The counts follow the results by an instant.
            helpers.wait_until(lambda: pool.status_report().tasks.done == 4)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("3/3 tasks, 0 running, 0 waiting")


def test_one_line_that_changes_on_a_terminal() -> None:
    reading, writing = pty.openpty()
    output: list[bytes] = []

    def collect() -> None:
        while True:
            try:
                output.append(os.read(reading, 4096))
            except OSError:
                return

    thread = threading.Thread(target=collect)
    thread.start()
    with open(writing, "w", encoding="utf-8") as stream, FluxPoolExecutor(instance="local") as pool:
        with progress(pool, total=2, stream=stream):
            pool.submit(time.sleep, 0.01).result(60)
            helpers.wait_until(lambda: b"1/2 tasks" in b"".join(output), bound=60)
    thread.join(60)
    os.close(reading)
    assert re.search(rb"\r\x1b\[2K", b"".join(output)), output  # the line was replaced


def test_an_exception_of_the_block_passes_and_the_last_line_is_shown(tmp_path: Path) -> None:
    stream = io.StringIO()
    with FluxPoolExecutor(instance="local") as pool:
        with pytest.raises(KeyError):
            with progress(pool, stream=stream):
                raise KeyError
    assert stream.getvalue().startswith("0/0 tasks")


def test_one_output_of_a_cell_changes_in_a_notebook(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs Jupyter: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs Jupyter: pip install nbclient ipykernel")
    import nbformat

    changes: list[str] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc]
        def process_message(self, message: dict[str, Any], *where: Any) -> Any:
            if message["msg_type"] == "update_display_data":
                changes.append(message["content"]["data"]["text/plain"])
            return super().process_message(message, *where)

    cell = (
        "import time\n"
        "from parsl_flux_bulk import FluxPoolExecutor, progress\n"
        "with FluxPoolExecutor(max_workers=1, instance='local') as executor, progress(executor, 4):\n"
        "    assert len(list(executor.map(time.sleep, [0.4] * 4))) == 4"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    Client(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    (output,) = notebook.cells[0].outputs
    assert output["output_type"] == "display_data"
    assert output["data"]["text/plain"].startswith("4/4 tasks, 0 running")
    assert any(", 1 running" in line for line in changes), changes
