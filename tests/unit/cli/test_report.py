"""What the report counts as failed and as canceled."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from parsl_flux_bulk.cli.bulksubmit.report import Report
from parsl_flux_bulk.cli.bulksubmit.streams import Records
from parsl_flux_bulk.instances.base import JobResult, JobStatus

CANCELED = JobResult(JobStatus.CANCELED, exception="cancel", started=False)
AS_IT_STARTED = JobResult(JobStatus.FAILED, exit_code=1, exception="exec", note="start failed: sh: Success")
FAILED = JobResult(JobStatus.FAILED, exit_code=3)


@pytest.mark.parametrize(
    ("result", "interrupted", "status"),
    [
        (CANCELED, True, "canceled"),
        (AS_IT_STARTED, True, "canceled"),
        (FAILED, True, "failed"),
        (AS_IT_STARTED, False, "failed"),
    ],
)
def test_what_counts_as_canceled(tmp_path: Path, result: JobResult, interrupted: bool, status: str) -> None:
    records = Records(str(tmp_path / "records"))
    stream = cast("Any", io.StringIO())
    report = Report(1, records, stream, stream)
    future = cast("Any", SimpleNamespace(t_submit=1.0, t_end=2.0, job_name="1", node="", label="x"))
    item = cast("Any", SimpleNamespace(label="x", key="x", retries=0))
    report.job_ended(item, future, result, interrupted=interrupted)
    records.close()
    assert (report.canceled, report.failed) == ((1, 0) if status == "canceled" else (0, 1))
    assert json.loads((tmp_path / "records").read_text())["status"] == status
